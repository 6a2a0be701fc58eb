import inspect

import numpy as np
import pytest

from polyroute import errors
from polyroute.errors import PolyrouteError

RAISED = [
    errors.ShapeError("price", got=(3,), expected=(4, "m")),
    errors.ConfigError("policies.auto.trade_off", got=-1, expected="a number, 0 or more", hint="0 ignores cost."),
    errors.UnknownNameError("router", "knm", ["knn", "linear"]),
    errors.UnknownCandidateError(["d"], ["a", "b"]),
    errors.NoCandidateError("q7", {"a": "healthy"}),
    errors.EstimateError("cost", row=0, column=2, got=float("nan")),
    errors.SelectionError("Greedy", "q7", got=3, allowed=["a", "b"]),
    errors.NotFittedError(object()),
    errors.PropensityError([0.5, 0.0, 2.0, float("nan")]),
    errors.ArtefactError("r.npz", "version 9", expected="version 1"),
    errors.MissingExtraError("scipy", "data"),
    errors.UpstreamError("timeout", "no first byte within 5 s"),
    errors.CheckpointError("moe.safetensors", "version 9", expected="version 1", hint="Save it again."),
]


def classes():
    return [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]


@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
def test_messages_read_well_on_one_line(error):
    message = str(error)
    assert message
    assert "\n" not in message
    assert "<" not in message  # no object at 0x...
    assert "  " not in message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RAISED[0], "price: expected shape (4, 'm'), got (3,)."),
        (RAISED[1], "policies.auto.trade_off: expected a number, 0 or more, got -1. 0 ignores cost."),
        (RAISED[2], "Unknown router 'knm'; expected one of: knn, linear. Did you mean 'knn'?"),
        (RAISED[8], "propensity: expected values in (0, 1], got 3 others (row 1: 0.0, row 2: 2.0, row 3: nan)."),
        (RAISED[10], "scipy is not installed; it comes with: pip install 'polyroute[data]'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_messages_say_expected_got_where_and_what_next(error, message):
    assert str(error) == message


def test_every_error_is_ours_and_the_built_in_that_fits():
    for error in classes():
        assert issubclass(error, PolyrouteError)
        if error is not PolyrouteError:
            assert any(base.__module__ == "builtins" for base in error.__mro__[1:-3]), error


def test_the_tree_in_the_docstring_is_the_tree():
    listed = {line.split()[0].rstrip(",") for line in errors.__doc__.splitlines() if line.startswith("        ")}
    assert listed == {error.__name__ for error in classes()} - {"PolyrouteError"}


def test_facts_are_attributes():
    assert RAISED[4].refused == {"a": "healthy"}
    assert RAISED[5].column == 2
    assert RAISED[8].rows.tolist() == [1, 2, 3]
    assert RAISED[11].kind == "timeout"
    assert np.shape(RAISED[0].got) == (1,)


def test_nothing_near_is_not_suggested():
    assert errors.nearest("zebra", ["knn", "linear"]) is None
    assert "Did you mean" not in str(errors.UnknownNameError("router", "zebra", ["knn", "linear"]))
    assert str(errors.UnknownNameError("router", "x", [])).endswith("expected one of: none are known.")
