"""The router of token ids: causal, alike in all layers, and its targets against a loop."""

from __future__ import annotations

import pytest

from polyroute.errors import ConfigError, ShapeError

torch = pytest.importorskip("torch")

from polyroute.nn.token_router import AsGiven, TokenRouter, affinity, distillation  # noqa: E402

pytestmark = pytest.mark.torch


def test_logits_of_a_token_do_not_know_the_next_ones():
    torch.manual_seed(0)
    router, ids = TokenRouter(9, 8, 3), torch.arange(20).reshape(2, 10) % 9
    changed = ids.clone()
    changed[:, 6:] = 0
    with torch.no_grad():
        a, b = router(ids), router(changed)
    torch.testing.assert_close(a[:, :6], b[:, :6])
    assert not torch.allclose(a[:, 6:], b[:, 6:])
    assert a.shape == (2, 10, router.width)


def test_the_embedding_is_a_copy():
    table = torch.randn(9, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    router = TokenRouter(9, 8, 3, tokens=table)
    assert torch.equal(router.tokens.weight, table)
    assert router.tokens.weight.data_ptr() != table.data_ptr()
    with pytest.raises(ShapeError, match="tokens"):
        TokenRouter(9, 4, 3, tokens=table)
    with pytest.raises(ShapeError, match="ids"):
        TokenRouter(9, 8, 3, context=4)(torch.zeros(1, 5, dtype=torch.int64))


def test_affinities_are_those_of_a_loop_over_neurons():
    generator = torch.Generator().manual_seed(1)
    a = {name: torch.randn(6, 20, generator=generator) for name in ("0", "1")}
    private = {name: torch.zeros(2, 20, dtype=torch.bool) for name in a}
    for e in range(2):
        private["0"][e, 10 * e : 10 * e + 10] = True
        private["1"][e, 5 * e : 5 * e + 5] = True
    total = torch.zeros(6, 2)
    for name, width in (("0", 10), ("1", 5)):
        for t in range(6):
            ranked = sorted(a[name][t].tolist(), reverse=True)
            for f in range(20):
                points = sum(
                    float(a[name][t, f]) > ranked[r]
                    for r in (width - 1, 4 * width // 5 - 1, 3 * width // 5 - 1, 2 * width // 5 - 1, width // 5 - 1)
                )
                for e in range(2):
                    total[t, e] += points / (3 * width) * bool(private[name][e, f])
    torch.testing.assert_close(affinity(a, private), (total - total.mean()) * 10)
    with pytest.raises(ConfigError, match="private"):
        affinity(a, {"0": private["0"]})


def test_the_lesson_is_least_for_the_right_order():
    goal = torch.tensor([[3.0, 0.0, -1.0], [0.0, 2.0, 0.0]])
    right, wrong = distillation(goal, goal), distillation(-goal, goal)
    assert float(right) < float(wrong)
    smooth = torch.nn.functional.cross_entropy(goal, goal.argmax(-1), label_smoothing=0.5)
    soft = -(goal.softmax(-1) * goal.log_softmax(-1)).sum(-1).mean()
    assert float(right) == pytest.approx(float(0.75 * smooth + 0.25 * soft))


def test_a_scorer_that_takes_logits_as_given_needs_one_for_each_expert():
    scorer = AsGiven().build(3, 3)
    assert torch.equal(scorer(torch.ones(2, 3, dtype=torch.bfloat16)), torch.ones(2, 3))
    with pytest.raises(ConfigError, match="width 3"):
        AsGiven().build(3, 4)
