"""Rules: Kleene's tables in full, guards that nothing outranks, and a lint checked by enumeration."""

from __future__ import annotations

import itertools
import random
import time

import numpy as np
import pytest

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.policies.lint import lint
from polyroute.policies.multifactor import MultiFactor
from polyroute.policies.rules import (
    All,
    Any,
    Is,
    Not,
    Rule,
    Rules,
    condition_of,
    confidence,
    degree,
    rules_from,
    signals_of,
    truth,
)
from polyroute.types import Estimate, Objective

NAMES = "abcdef"


def grown(rng, depth=3):
    """A random condition over at most six leaves' names."""
    kind = rng.choice(["is", "not", "all", "any"]) if depth else "is"
    if kind == "is":
        return Is(rng.choice(NAMES), rng.choice([None, None, None, True, False]))
    if kind == "not":
        return Not(grown(rng, depth - 1))
    return (All if kind == "all" else Any)(tuple(grown(rng, depth - 1) for _ in range(rng.randint(0, 3))))


def plain(condition, known):
    """Two-valued logic by Python's own operators."""
    match condition:
        case Is(signal):
            return known[signal]
        case Not(of):
            return not plain(of, known)
        case All(of):
            return all(plain(part, known) for part in of)
        case Any(of):
            return any(plain(part, known) for part in of)


def test_known_signals_follow_two_valued_logic_on_every_row():
    rng = random.Random(0)
    for _ in range(60):
        condition = grown(rng)
        for row in itertools.product([True, False], repeat=6):
            known = dict(zip(NAMES, row, strict=True))
            readings = {name: (value, float(value)) for name, value in known.items()}
            assert truth(condition, readings) is plain(condition, known)
            assert degree(condition, readings) == (float(plain(condition, known)),) * 2


def kleene(condition, known):
    """The strong Kleene tables, written as minimum and maximum of -1, 0 and 1."""
    match condition:
        case Is(signal, missing):
            value = missing if known[signal] is None else known[signal]
            return 0 if value is None else 1 if value else -1
        case Not(of):
            return -kleene(of, known)
        case All(of):
            return min([kleene(part, known) for part in of], default=1)
        case Any(of):
            return max([kleene(part, known) for part in of], default=-1)


def test_unknown_signals_follow_kleene_on_every_row():
    rng = random.Random(1)
    for _ in range(25):
        condition = grown(rng)
        for row in itertools.product([True, False, None], repeat=6):
            known = dict(zip(NAMES, row, strict=True))
            got = truth(condition, {name: (value, 0.5) for name, value in known.items()})
            assert got is {1: True, 0: None, -1: False}[kleene(condition, known)]


def test_a_signal_that_is_missing_is_not_a_signal_that_does_not_match():
    assert truth(Not(Is("pii")), {}) is None
    assert truth(Not(Is("pii")), {"pii": (False, 0.0)}) is True
    assert truth(Not(Is("pii", missing=True)), {}) is False
    assert truth(All((Is("a"), Is("b"))), {"a": (False, 0.0)}) is False  # settled whatever b is


def test_degrees_are_minimum_maximum_and_complement():
    readings = {"a": (True, 0.9), "b": (False, 0.2)}
    assert degree(All((Is("a"), Not(Is("b")))), readings) == pytest.approx((0.8, 0.8))
    assert degree(Any((Is("b"), Is("c"))), readings) == pytest.approx((0.2, 1.0))


def test_confidence_is_the_mean_over_satisfied_literals():
    readings = {"a": (True, 0.9), "b": (False, 0.2), "c": (True, 0.7)}
    assert confidence(All((Is("a"), Not(Is("b")))), readings) == pytest.approx((0.9 + 0.8) / 2)
    assert confidence(Any((Is("b"), Is("c"))), readings) == pytest.approx(0.7)


COST = Rule(name="cheap", when=Is("easy"), candidates=("small",), priority=100)
HARD = Rule(name="hard", when=Is("code"), candidates=("large", "medium"), priority=5, plugins=("think",))
PII = Rule(name="private", when=Is("pii"), candidates=("local",), guard=True, priority=-9, plugins=("mask",))
JAIL = Rule(name="jailbreak", when=Is("injection"), guard=True)
RULES = Rules((COST, HARD, PII, JAIL), default=("medium",))
CLEAN = {"pii": (False, 0.0), "injection": (False, 0.0), "easy": (False, 0.0), "code": (False, 0.0)}


def test_priority_decides_between_rules_and_the_default_serves_the_rest():
    assert RULES.rule_on(CLEAN).candidates == ("medium",)
    assert RULES.rule_on(CLEAN | {"code": (True, 0.9)}).candidates == ("large", "medium")
    both = RULES.rule_on(CLEAN | {"code": (True, 0.9), "easy": (True, 0.6)})
    assert (both.rule, both.matched, both.confidence) == ("cheap", ("cheap", "hard"), 0.6)
    sure = Rules(RULES.rules, RULES.default, "confidence").rule_on(CLEAN | {"code": (True, 0.9), "easy": (True, 0.6)})
    assert sure.rule == "hard"


def test_no_priority_outranks_a_guard():
    ruling = RULES.rule_on(CLEAN | {"easy": (True, 1.0), "pii": (True, 0.8)})
    assert (ruling.candidates, ruling.guards, ruling.plugins) == (("local",), ("private",), ("mask",))
    assert RULES.rule_on(CLEAN | {"easy": (True, 1.0), "injection": (True, 0.8)}).candidates == ()


def test_a_guard_that_could_not_look_has_not_passed_the_request():
    seen = {name: reading for name, reading in CLEAN.items() if name != "pii"} | {"easy": (True, 1.0)}
    ruling = RULES.rule_on(seen)
    assert (ruling.candidates, ruling.unknown) == (("local",), ("private",))
    assert RULES.rule_on({}).candidates == ()  # nor has the other one
    lenient = Rule(name="private", when=Is("pii", missing=False), candidates=("local",), guard=True)
    assert Rules((COST, lenient)).rule_on({"easy": (True, 1.0)}).candidates == ("small",)


def test_an_ordinary_rule_does_not_apply_on_what_is_not_known():
    unknown = {name: reading for name, reading in CLEAN.items() if name != "easy"}
    assert RULES.rule_on(unknown).rule is None
    assert RULES.rule_on(unknown).unknown == ("cheap",)


def test_guards_narrow_together_and_refuse_where_nobody_is_left():
    def guard(name, *ids):
        return Rule(name=name, when=Is(name), candidates=ids, guard=True)

    both = {"a": (True, 1.0), "b": (True, 1.0)}
    assert Rules((guard("a", "x", "y"), guard("b", "y", "z")), ("x", "y", "z")).rule_on(both).candidates == ("y",)
    assert Rules((guard("a", "x"), guard("b", "z")), ("x", "z")).rule_on(both).candidates == ()
    assert Rules((guard("a", "x"),), ("w",)).rule_on({"a": (True, 1.0)}).candidates == ("x",)


def test_every_guard_signal_is_asked_for():
    assert RULES.signals == {"easy", "code", "pii", "injection"}
    assert signals_of(Not(All((Is("a"), Any((Is("b"),)))))) == {"a", "b"}


def test_ten_decisions_are_cheap():  # a bound of thirty times what it takes, against an accidental square
    start = time.process_time()
    for _ in range(1000):
        RULES.rule_on(CLEAN)
    assert time.process_time() - start < 3.0


def test_rules_from_plain_data():
    rules = rules_from({
        "rules": [
            {"name": "sql", "when": {"all": ["sql", {"not": {"is": "pii", "missing": True}}]}, "candidates": ["a"]},
            {"name": "safe", "when": {"any": ["jailbreak", "pii"]}, "guard": True, "plugins": ["mask"]},
        ],
        "default": ["b"],
    })  # fmt: skip
    assert rules.rules[0].when == All((Is("sql"), Not(Is("pii", True))))
    assert rules.rules[1] == Rule(name="safe", when=Any((Is("jailbreak"), Is("pii"))), guard=True, plugins=("mask",))
    assert rules.default == ("b",)


@pytest.mark.parametrize(
    ("when", "path"),
    [({"all": "sql"}, "when"), ({"not": 3}, "when.not"), ({"any": ["a", {}]}, r"when.any\[1\]"), ("", "when"),
     ({"is": "a", "missing": "no"}, "when.missing"), ({"all": [], "any": []}, "when")],
)  # fmt: skip
def test_a_condition_that_is_none_names_its_place(when, path):
    with pytest.raises(ConfigError, match=f"^{path}: expected"):
        condition_of(when)


def test_wrong_rules_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'candidates'"):
        rules_from({"rules": [{"name": "a", "when": "b", "candidate": ["x"]}]})
    with pytest.raises(ConfigError, match="Only a guard may refuse"):
        Rule(name="a", when=Is("b"))
    with pytest.raises(ConfigError, match="each name once"):
        Rules((COST, COST))


def rule(name, when, *candidates, **fields):
    return Rule(name=name, when=when, candidates=candidates or (name,), **fields)


def test_lint_finds_what_enumeration_finds():
    rng = random.Random(2)
    found = {"never": 0, "shadowed": 0, "uncovered": 0}
    for _ in range(60):
        rules = Rules(tuple(rule(f"r{i}", grown(rng, 2), priority=rng.randint(0, 2)) for i in range(4)))
        names = sorted(rules.signals)
        winners, holders, covered = set(), set(), True
        for row in itertools.product([True, False], repeat=len(names)):
            ruling = rules.rule_on({name: (value, 1.0) for name, value in zip(names, row, strict=True)})
            winners.add(ruling.rule)
            holders.update(ruling.matched)
            covered &= ruling.rule is not None
        report = lint(rules)
        assert report.complete
        expected = {
            "never": {r.name for r in rules.rules} - holders, "shadowed": holders - winners,
            "uncovered": set() if covered else {""},
        }  # fmt: skip
        for kind, names_ in expected.items():
            assert {issue.rules[0] if issue.rules else "" for issue in report.of(kind)} == names_
            found[kind] += len(names_)
    assert min(found.values()) > 5  # the random rules did hold such cases


def test_lint_shows_a_request_for_each_conflict():
    one, two = rule("one", Is("a")), rule("two", Is("b"))
    (issue,) = lint(Rules((one, two), default=("x",))).of("conflict")
    assert issue.rules == ("one", "two")
    assert issue.example == {"a": True, "b": True}
    assert not lint(Rules((one, two), default=("x",)), exclusive=[{"a", "b"}]).of("conflict")
    guards = Rules((rule("g", Is("a"), guard=True), rule("h", Is("b"), guard=True)), default=("x",))
    assert lint(guards).of("conflict")[0].rules == ("g", "h")


def test_lint_names_what_does_not_exist():
    report = lint(Rules((rule("one", Is("sqll"), "nobody"),)), signals=["sql"], candidates=["a"])
    assert report.of("unknown-signal")[0].rules == ("one",)
    assert "'nobody'" in report.of("unknown-candidate")[0].message


def test_lint_says_when_it_could_not_try_everything():
    wide = Rules((rule("one", All(tuple(Is(f"s{i}") for i in range(20)))),))
    report = lint(wide)
    assert not report.complete
    assert not report.of("never")
    assert report.of("uncovered")


def test_multi_factor_by_hand():
    estimates = {
        "quality": Estimate(np.array([[0.5, 0.9, 0.7]])), "cost": Estimate(np.array([[1.0, 5.0, 2.0]])),
        "load": Estimate(np.array([[3.0, 3.0, 3.0]])),
    }  # fmt: skip
    goal = Objective({"quality": 0.5, "cost": -0.5, "load": -0.25})
    got = MultiFactor().decide(estimates, goal, np.ones((1, 3), bool), np.random.default_rng(0))
    assert got.index.tolist() == [[2]]
    assert got.weight[0, 0] == pytest.approx(0.5 * 0.5 + 0.5 * (1 - 0.25) + 0.25 * 0.5)
    ceiling = MultiFactor({"cost": 1.5})
    assert ceiling.decide(estimates, goal, np.ones((1, 3), bool), np.random.default_rng(0)).index.tolist() == [[0]]
    nobody = MultiFactor({"cost": 0.5})
    assert nobody.decide(estimates, goal, np.ones((1, 3), bool), np.random.default_rng(0)).index.tolist() == [[2]]


def test_multi_factor_counts_what_is_missing_as_nothing():
    estimates = {"quality": Estimate(np.array([[np.nan, 0.2, 0.9]]))}
    goal, rng = Objective({"quality": 1.0}), np.random.default_rng(0)
    assert MultiFactor().decide(estimates, goal, np.array([[True, True, False]]), rng).index.tolist() == [[1]]
    with pytest.raises(UnknownNameError, match="metric"):
        MultiFactor({"latency": 1.0}).decide(estimates, goal, np.ones((1, 3), bool), rng)
