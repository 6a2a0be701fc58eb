"""GEM and SCAR: the audit of a table, the home of a model, and domains of tasks."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import OutcomesError, UnknownCandidateError
from polyroute.recipes.specialist import audit, domains_of, home
from tests.routers.tables import toy


@pytest.fixture
def specialist():
    """m1 answers law questions always and the others never; m0 half of everything."""
    table = toy(200, missing=0.0)
    law = table.labels["dataset"] == "law"
    table.values["quality"][:, 1] = law
    table.values["quality"][:, 0] = np.arange(200) % 2
    return table


def test_a_specialist_is_found_out(specialist):
    table, domains = domains_of(specialist, {"law": "law", "maths": "numbers"})
    found = audit(table, "m1", "m0", domains, "law", np.random.default_rng(0))
    assert found.special == {"law": 1.0, "numbers": 0.0}
    assert found.gg.interval.low > 0.7
    assert found.cdtr.value == pytest.approx(-found.base["numbers"] / (1 - found.base["law"]))
    assert home(table, "m1", domains) == "law"


def test_gaps_are_left_out(specialist):
    specialist.values["quality"][:10, 0] = np.nan
    table, domains = domains_of(specialist, {"law": "law", "maths": "numbers"})
    assert audit(table, "m1", "m0", domains, "law", np.random.default_rng(0)).special["law"] == 1.0


def test_only_tasks_with_a_domain_count(specialist):
    table, domains = domains_of(specialist, {"law": "law"})
    assert set(domains) == {"law"}
    assert len(table) == (specialist.labels["dataset"] == "law").sum()
    with pytest.raises(OutcomesError, match="none of them"):
        domains_of(specialist, {"chess": "games"})
    with pytest.raises(UnknownCandidateError, match="'m9'"):
        audit(table, "m9", "m0", domains, "law", np.random.default_rng(0))
    with pytest.raises(UnknownCandidateError, match="'m9'"):
        home(table, "m9", domains)
