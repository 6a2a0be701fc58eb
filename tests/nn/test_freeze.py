"""Frozen routers stand still, prices too; what settles is found, and only then."""

from __future__ import annotations

import pytest

from polyroute.errors import ConfigError

torch = pytest.importorskip("torch")

from polyroute.nn.freeze import ClearGaps, FreezeGate, SteadyRoutes  # noqa: E402
from polyroute.nn.inputs import Recurrent  # noqa: E402
from polyroute.nn.moe import MoE, end_step  # noqa: E402
from polyroute.nn.normalise import SelectionBias, UniformNoise  # noqa: E402
from polyroute.nn.routing import TokenContext  # noqa: E402

pytestmark = pytest.mark.torch
D, E = 8, 4


def two_layers(**parts):
    torch.manual_seed(0)
    return torch.nn.Sequential(MoE(D, 6, E, **parts), MoE(D, 6, E, **parts))


def steps(model, count, freeze, start=0):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    for step in range(start, start + count):
        x = torch.randn(16, D, generator=generator)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        end_step(model)
        freeze(step)


def test_a_frozen_router_stands_still_and_its_experts_go_on():
    model = two_layers(mods=(SelectionBias(0.01),))
    freeze = FreezeGate(model, lambda still_open, step: ["0"] if step >= 4 else [], after=2)
    steps(model, 5, freeze)
    assert freeze.frozen == {"0": 4}
    router, experts = model[0].router, model[0].pool
    before = [
        t.clone() for t in (router.scorer.weight, router.mods[0].bias_E, experts.w1_EGD, model[1].router.scorer.weight)
    ]
    steps(model, 3, freeze, start=5)
    after = (router.scorer.weight, router.mods[0].bias_E, experts.w1_EGD, model[1].router.scorer.weight)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, False]
    assert not freeze.done


def test_nothing_is_frozen_before_its_time():
    model = two_layers()
    freeze = FreezeGate(model, lambda still_open, step: list(still_open), after=3)
    steps(model, 2, freeze)
    assert freeze.frozen == {}
    steps(model, 1, freeze, start=2)
    assert freeze.frozen == {"0": 2, "1": 2}
    assert freeze.done


def test_what_routers_share_is_frozen_with_the_last_of_them():
    cell = torch.nn.GRUCell(5, 5)
    model = two_layers(inp=Recurrent(cell))
    freeze = FreezeGate(model, lambda still_open, step: ["1"] if step == 0 else ["0"])
    freeze(0)
    assert cell.weight_hh.requires_grad
    assert not model[1].router.scorer.weight.requires_grad
    freeze(1)
    assert not cell.weight_hh.requires_grad


def test_routes_that_stay_settle_a_layer_and_routes_that_change_do_not():
    fixed, generator = torch.arange(100) % E, torch.Generator().manual_seed(0)
    settled = SteadyRoutes(
        lambda: {"0": fixed, "1": torch.randint(E, (100,), generator=generator)}, share=0.02, patience=3, every=5
    )
    freeze = FreezeGate(two_layers(), settled)
    for step in range(40):
        freeze(step)
    assert freeze.frozen == {"0": 19}  # looks at 4, 9, 14, 19: three changes of nothing
    assert settled.changed["0"] == [0.0] * 3
    assert min(settled.changed["1"]) > 0.5


def test_gaps_are_clear_when_every_expert_has_won_by_more_than_the_noise_or_less_than_nothing():
    layer = MoE(2, 4, 2)
    with torch.no_grad():
        layer.router.scorer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    settled = ClearGaps(0.1, 1.0)
    found = []
    for x in ([[3.0, 0.0]], [[0.0, 0.5]], [[0.0, 3.0]]):
        layer.routing = one_expert(layer, x)
        found.append(settled({"": layer}, 0))
    assert found == [[], [], [""]]  # the second wins, but within the noise
    layer.routing = one_expert(layer, [[1.0, 0.5]])
    assert settled({"": layer}, 0) == []  # clear before, not any more
    layer.routing = one_expert(layer, [[1.0, 0.95]])
    assert settled({"": layer}, 0) == [""]  # two of one kind


def one_expert(layer, x):
    from polyroute.nn.gates import Raw
    from polyroute.nn.selection import TopK

    x = torch.tensor(x)
    layer.router.select, layer.router.gate = TopK(1), Raw()
    return layer.router(TokenContext(x, (1, len(x))))


def test_noise_of_a_sequence_is_one_draw_and_leaves_logits_alone():
    torch.manual_seed(0)
    noise = UniformNoise(2.0, on="choice", sequence=True).build(D, E)
    z = torch.zeros(6, E)
    ctx = TokenContext(torch.zeros(6, D), (2, 3), training=True)
    noisy = noise(z, ctx, ctx.x_TD)
    assert torch.equal(noisy[0], noisy[2])
    assert not torch.equal(noisy[2], noisy[3])
    assert 0 <= float(noisy.min()) < float(noisy.max()) < 2
    assert noise.on == "choice"
    ctx.training = False
    assert torch.equal(noise(z, ctx, ctx.x_TD), z)
    with pytest.raises(ConfigError, match="on"):
        UniformNoise(on="probs").build(D, E)


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="MoE layers"):
        FreezeGate(torch.nn.Linear(2, 2), lambda still_open, step: [])
    with pytest.raises(ConfigError, match="after"):
        FreezeGate(two_layers(), lambda still_open, step: [], after=-1)
    with pytest.raises(ConfigError, match="small"):
        ClearGaps(1.0, 0.5)
    with pytest.raises(ConfigError, match="patience"):
        SteadyRoutes(dict, patience=0)
