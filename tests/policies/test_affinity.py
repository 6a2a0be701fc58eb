import pytest

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.policies.affinity import DualMap, HotPrefixes, moves

NAMES = [f"i{k}" for k in range(8)]


def test_a_key_is_the_first_block_until_it_is_hot_and_again_when_it_cools():
    hot = HotPrefixes(window=100)
    for k in range(100):
        hot.key((k, 1), 4)
    assert hot.key((7, 1, 2), 4) == (7,)
    for k in range(100):
        key = hot.key((5, k % 20), 4)
    assert key == (5, 99 % 20)
    for k in range(200):
        hot.key((1000 + k,), 4)
    assert hot.key((5, 3), 4) == (5,)
    assert hot.key((), 4) == ()


def test_a_prefix_has_two_homes_that_stay():
    dual = DualMap(NAMES)
    pairs = [dual.pair((k, 1, 2)) for k in range(200)]
    assert pairs == [dual.pair((k, 3)) for k in range(200)]
    assert all(a != b for a, b in pairs)
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 8
    assert DualMap(["only"]).pair((1,)) == ("only", "only")


def test_few_homes_move_when_an_instance_goes_and_all_return_with_it():
    dual = DualMap(NAMES)
    before = [dual.pair((k,)) for k in range(500)]
    dual.remove("i3")
    after = [dual.pair((k,)) for k in range(500)]
    kept = [a == b for (a, _), (b, _) in zip(before, after, strict=True) if a != "i3"]
    assert all(kept)
    dual.add("i3")
    assert [dual.pair((k,)) for k in range(500)] == before
    with pytest.raises(UnknownNameError):
        dual.remove("i9")


def choose(cached, first, load):
    return DualMap(["a", "b"], slo_s=5.0).place(("a", "b"), cached.get, first.get, load.get)


def test_the_cache_decides_unless_it_would_be_late():
    even = {"a": 0.0, "b": 0.0}
    assert choose(even, {}, {"a": 2.0, "b": 1.0}) == "b"
    near = {"a": 512.0, "b": 0.0}
    assert choose(near, {"a": 4.0}, {"a": 4.0, "b": 0.0}) == "a"
    assert choose(near, {"a": 6.0}, {"a": 6.0, "b": 0.0}) == "b"
    assert choose(near, {"a": 6.0}, {"a": 6.0, "b": 9.0}) == "a"


def test_those_who_gain_most_move_first_and_only_where_they_are_in_time():
    seconds = {
        (1, "a"): 9.0,
        (1, "b"): 2.0,
        (2, "a"): 12.0,
        (2, "b"): 1.0,
        (3, "a"): 12.0,
        (3, "b"): 6.0,
        (4, "a"): 1.0,
        (4, "b"): 2.0,
    }
    found = moves([1, 2, 3, 4], "a", lambda r: "b", lambda r, name: seconds[r, name], 5.0)
    assert found == [(2, "b"), (1, "b")]


def test_settings_are_checked():
    for make in (lambda: DualMap([]), lambda: DualMap(["a"], slo_s=0.0), lambda: HotPrefixes(0)):
        with pytest.raises(ConfigError):
            make()
