import math

import numpy as np
import pytest

from polyroute.errors import ConfigError
from polyroute.offline.fleet import Arrivals, Instance, least_busy, poisson, simulate
from polyroute.offline.queueing import (
    Accelerator,
    best_split,
    erlang_c,
    mean_wait,
    pool_size,
    wait_quantile,
)


def direct(servers, load):
    """Erlang's formula as it is written in books."""
    top = load**servers / math.factorial(servers) * servers / (servers - load)
    return top / (sum(load**k / math.factorial(k) for k in range(servers)) + top)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.6), (2, 1.5), (5, 4.0), (20, 17.0)])
def test_the_formula_is_the_one_in_books(servers, load):
    assert erlang_c(servers, load) == pytest.approx(direct(servers, load))


def test_its_closed_forms():
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    u = 0.8
    assert erlang_c(2, 2 * u) == pytest.approx(2 * u**2 / (1 + u))
    assert erlang_c(3, 0.0) == 0.0
    assert erlang_c(3, 3.0) == 1.0
    assert 0 < erlang_c(5000, 4990.0) < 1  # no overflow
    assert mean_wait(1, 0.5, 1.0) == pytest.approx(1.0)  # rho / (1 - rho) service times
    assert mean_wait(1, 0.5, 1.0, variation=0.0) == pytest.approx(0.5)  # fixed service: half
    assert mean_wait(2, 3.0, 1.0) == math.inf


def test_a_quantile_of_waiting_is_the_exponential_tail():
    wait = wait_quantile(1, 0.5, 1.0, 0.99)
    assert 0.5 * math.exp(-0.5 * wait) == pytest.approx(0.01)
    assert wait_quantile(10, 1.0, 1.0, 0.9) == 0.0
    assert wait_quantile(1, 2.0, 1.0, 0.9) == math.inf


@pytest.mark.parametrize(("servers", "load"), [(1, 0.6), (4, 3.0)])
def test_a_simulated_queue_waits_as_the_formula_says(servers, load):
    rng, n = np.random.default_rng(servers), 60_000
    tokens = rng.exponential(1.0, size=(n, 1))
    arrivals = Arrivals(poisson(load, n, rng), np.zeros(n), tokens)
    served = simulate([Instance(id="a", slots=servers, seconds_per_token=1.0)], arrivals, least_busy)
    waited = (served.start_s - arrivals.time_s)[5000:]
    assert (waited > 0).mean() == pytest.approx(erlang_c(servers, load), abs=0.03)
    assert waited.mean() == pytest.approx(mean_wait(servers, load, 1.0), rel=0.1)


def test_a_pool_keeps_its_promise_and_one_gpu_less_does_not():
    rng = np.random.default_rng(0)
    prompt, output = rng.lognormal(6, 0.8, 2000), rng.lognormal(5, 0.5, 2000)
    sized = pool_size(40.0, prompt, output, 4096)
    assert sized.first_token_s <= 2.0
    assert sized.busy <= 0.85
    gpu = Accelerator()
    service = prompt / gpu.prefill_tokens_per_s + output * gpu.seconds_per_token(4096)
    assert 40.0 * service.mean() / ((sized.gpus - 1) * sized.sequences) > 0.85
    assert gpu.sequences(8192) * 2 == gpu.sequences(4096)
    assert pool_size(0.0, prompt, output, 4096).gpus == 0
    with pytest.raises(ConfigError, match="first_token_s: expected"):
        pool_size(1.0, np.full(10, 1e6), np.ones(10), 4096)


def test_a_long_tail_is_worth_a_pool_of_its_own_and_like_lengths_are_not():
    rng = np.random.default_rng(1)
    output = rng.lognormal(5, 0.5, 2000)
    tail = np.where(rng.random(2000) < 0.05, 24_000.0, rng.lognormal(6, 0.5, 2000))
    one = pool_size(60.0, tail, output, 32_768)
    split = best_split(60.0, tail, output, (2048, 4096, 8192), 32_768)
    assert split.gpus < 0.7 * one.gpus
    alike = np.full(2000, 20_000.0)
    assert (
        best_split(20.0, alike, output, (4096, 8192, 32_768), 32_768).gpus
        == pool_size(20.0, alike, output, 32_768).gpus
    )
    with pytest.raises(ConfigError, match="boundaries"):
        best_split(1.0, tail, output, (), 32_768)


def test_a_pool_without_servers_is_refused():
    with pytest.raises(ConfigError):
        erlang_c(0, 1.0)
