"""Threads over experts: the same numbers as one thread, errors raised, alive after a fork."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from polyroute.nn.crew import share  # noqa: E402
from polyroute.nn.gates import Raw  # noqa: E402
from polyroute.nn.moe import MoE  # noqa: E402
from polyroute.nn.selection import TopK  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def results(name: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    moe = MoE(16, 8, 12, select=TopK(3), gate=Raw(), executor=name)
    x = torch.randn(64, 16, requires_grad=True)
    y = moe(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in moe.parameters())]


def test_two_threads_compute_what_the_oracle_computes(two_threads: None) -> None:
    for got, expected in zip(results("sorted_loop"), results("dense"), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=1e-5)


def test_two_threads_give_the_same_bits_every_time(two_threads: None) -> None:
    first = results("sorted_loop")
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(results("sorted_loop"), first, strict=True))


def test_every_job_is_done_once() -> None:
    done: list[int] = []
    share(done.append, [(i,) for i in range(100)], 2)
    assert sorted(done) == list(range(100))


def test_an_error_in_a_job_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        share(lambda i: 1 // i, [(1,), (0,), (2,)], 2)
    done: list[int] = []
    share(done.append, [(1,)], 2)  # the crew is still there
    assert done == [1]


def test_the_number_of_threads_of_others_stays(two_threads: None) -> None:
    share(lambda: None, [()], 2)
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_gets_threads_of_its_own() -> None:
    share(lambda: None, [()], 2)
    child = os.fork()
    if child == 0:
        done: list[int] = []
        share(done.append, [(1,), (2,)], 2)
        os._exit(0 if sorted(done) == [1, 2] else 1)
    assert os.waitpid(child, 0)[1] == 0
