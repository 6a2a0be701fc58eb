"""Every error polyroute raises on purpose.

    PolyrouteError
        ShapeError, ValueError            an array does not fit
        EmbeddingError, ValueError        a query's embedding is missing or not finite
        ConfigError, ValueError           a setting is not what was expected; carries its path
        UnknownNameError, LookupError     a name nobody knows; suggests the nearest
        UnknownCandidateError, LookupError  a router never saw these candidates
        NoCandidateError, LookupError     every candidate is ruled out
        EstimateError, ValueError         an estimate that a choice depends on is not a finite number
        SelectionError, ValueError        a policy chose what the constraints ruled out
        NotFittedError, RuntimeError      predict before fit
        OutcomesError, ValueError         a table or log does not fit the schema
        JournalError, ValueError          a journal file is missing, unreadable or of another kind
        PropensityError, ValueError       a logged row cannot be reweighted
        ArtefactError, ValueError         a saved router cannot be read
        CheckpointError, ValueError       a file of network weights cannot be read, or does not fit
        ProfileError, ValueError          a measured profile cannot be read, or cannot be measured
        ModelFileError, RuntimeError      a model file is missing, broken or cannot be fetched
        MissingExtraError, ImportError    an optional package is not installed; names the pip line
        UpstreamError, OSError            a backend refused, timed out, was cut or talked nonsense
        ReplyError, ValueError            a language model did not answer in the form it was asked for

An error says what was expected, what came, where, and what to do next; its facts are attributes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


class PolyrouteError(Exception):
    """Base of every error raised on purpose."""


class ShapeError(PolyrouteError, ValueError):
    """An array has another shape than the caller promised."""

    def __init__(self, argument: str, *, got: tuple[int, ...], expected: tuple[Any, ...]):
        self.argument, self.got, self.expected = argument, tuple(got), tuple(expected)
        super().__init__(f"{argument}: expected shape {self.expected}, got {self.got}.")


class EmbeddingError(PolyrouteError, ValueError):
    """A query cannot be placed: its embedding is missing or not finite. query_id: which one."""

    def __init__(self, query_id: str, problem: str):
        self.query_id, self.problem = query_id, problem
        super().__init__(
            f"embedding of query {query_id!r}: expected finite numbers, got {problem}. "
            f"Embed the query with the featuriser the router was fitted with."
        )


class ConfigError(PolyrouteError, ValueError):
    """A setting is wrong. path: where it stands, e.g. `policies.auto.trade_off`."""

    def __init__(self, path: str, *, got: Any, expected: str, hint: str = ""):
        self.path, self.got, self.expected, self.hint = path, got, expected, hint
        super().__init__(f"{path}: expected {expected}, got {got!r}." + (f" {hint}" if hint else ""))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return close[0] if close else None


class UnknownNameError(PolyrouteError, LookupError):
    """A name nobody knows. suggestion: the nearest known one, if any is near."""

    def __init__(self, what: str, name: str, known: Iterable[str]):
        self.what, self.name, self.known = what, name, sorted(known)
        self.suggestion = nearest(name, self.known)
        hint = f" Did you mean {self.suggestion!r}?" if self.suggestion else ""
        listed = ", ".join(self.known[:12]) + (", ..." if len(self.known) > 12 else "")
        super().__init__(f"Unknown {what} {name!r}; expected one of: {listed or 'none are known'}.{hint}")


class UnknownCandidateError(PolyrouteError, LookupError):
    """A fitted router was asked about candidates it never saw and it has no prior for them."""

    def __init__(self, missing: Iterable[str], known: Iterable[str]):
        self.missing, self.known = list(missing), sorted(known)
        super().__init__(
            f"No estimate for {', '.join(map(repr, self.missing))}: expected candidates seen in fit "
            f"({', '.join(self.known[:12])}{', ...' if len(self.known) > 12 else ''}). "
            f"Fit again with their outcomes, or give the router a prior that reads profiles."
        )


class NoCandidateError(PolyrouteError, LookupError):
    """Every candidate is ruled out for a query.

    refused: candidate id -> the constraint that did it. asks: a sentence on what the query asks of a candidate.
    """

    def __init__(self, query_id: str, refused: Mapping[str, str], asks: str = ""):
        self.query_id, self.refused = query_id, dict(refused)
        why = ", ".join(f"{candidate} by {rule}" for candidate, rule in self.refused.items()) or "the pool is empty"
        super().__init__(
            f"No candidate may serve query {query_id!r}: expected at least 1 of {len(self.refused)}, "
            f"got 0 ({why}).{asks and f' {asks}'} Relax a constraint or add a candidate to the pool."
        )


class EstimateError(PolyrouteError, ValueError):
    """An allowed candidate's estimate cannot be weighed. row, column: where it stands in the estimates [n, m]."""

    def __init__(self, metric: str, *, row: int, column: int, got: float):
        self.metric, self.row, self.column, self.got = metric, row, column, got
        super().__init__(
            f"estimates[{metric!r}][{row}, {column}]: expected a finite number for an allowed candidate, got {got}. "
            f"Rule column {column} out for row {row}, or give its router a prior."
        )


class SelectionError(PolyrouteError, ValueError):
    """A policy chose a candidate that is not in the pool or that a constraint ruled out. allowed: ids it may choose."""

    def __init__(self, policy: str, query_id: str, *, got: int, allowed: Iterable[str]):
        self.policy, self.query_id, self.got, self.allowed = policy, query_id, got, list(allowed)
        super().__init__(
            f"{policy} chose column {got} for query {query_id!r}: expected one of {', '.join(self.allowed)}. "
            f"A policy must choose where `allowed` is True."
        )


class NotFittedError(PolyrouteError, RuntimeError):
    """A router was asked to predict before it was fitted."""

    def __init__(self, router: object):
        self.router = type(router).__name__
        super().__init__(f"{self.router} is not fitted: call fit(outcomes) or load an artefact before predict.")


class OutcomesError(PolyrouteError, ValueError):
    """A table or a log of outcomes does not fit the schema; the message names the column or row."""


class JournalError(PolyrouteError, ValueError):
    """A journal file is missing, cannot be read, or was written by something else."""

    def __init__(self, path: object, problem: str, *, hint: str = ""):
        self.path, self.problem, self.hint = str(path), problem, hint
        super().__init__(f"{self.path}: expected a polyroute journal, got {problem}." + (f" {hint}" if hint else ""))


class PropensityError(PolyrouteError, ValueError):
    """A logged propensity is not in (0, 1], so its row cannot be reweighted."""

    def __init__(self, propensity: Any):
        values = np.asarray(propensity, dtype=float)
        self.rows = np.flatnonzero(~((values > 0) & (values <= 1)))
        shown = ", ".join(f"row {i}: {values[i]}" for i in self.rows[:5])
        super().__init__(f"propensity: expected values in (0, 1], got {len(self.rows)} others ({shown}).")


class ArtefactError(PolyrouteError, ValueError):
    """A saved router cannot be read: another format, another version, or damaged."""

    def __init__(self, path: object, problem: str, *, expected: str = "a file written by polyroute fit"):
        self.path, self.problem, self.expected = str(path), problem, expected
        super().__init__(f"{self.path}: expected {expected}, got {problem}. Fit and save the router again.")


class CheckpointError(PolyrouteError, ValueError):
    """A file of network weights cannot be read: another format, version or architecture, damaged, or incomplete."""

    def __init__(self, path: object, problem: str, *, expected: str, hint: str = ""):
        self.path, self.problem, self.expected, self.hint = str(path), problem, expected, hint
        super().__init__(f"{self.path}: expected {expected}, got {problem}." + (f" {hint}" if hint else ""))


class ProfileError(PolyrouteError, ValueError):
    """A file of `polyroute calibrate` cannot be read, or a model could not be measured."""

    def __init__(self, path: object, problem: str, *, expected: str = "a file written by polyroute calibrate"):
        self.path, self.problem, self.expected = str(path), problem, expected
        super().__init__(f"{self.path}: expected {expected}, got {problem}. Measure the model again.")


class ModelFileError(PolyrouteError, RuntimeError):
    """A model file is missing, broken, or none of its sources could be reached."""


class MissingExtraError(PolyrouteError, ImportError):
    """An optional package is not installed. extra: the name to put in brackets after pip install polyroute."""

    def __init__(self, package: str, extra: str):
        self.package, self.extra = package, extra
        super().__init__(f"{package} is not installed; it comes with: pip install 'polyroute[{extra}]'")


class UpstreamError(PolyrouteError, OSError):
    """A backend could not be reached or broke off. kind: refused, timeout, cut, protocol, busy or missing."""

    def __init__(self, kind: str, message: str):
        self.kind = kind
        super().__init__(message)


class ReplyError(PolyrouteError, ValueError):
    """A language model did not answer in the form it was asked for. rule: which one it broke; text: what it said."""

    def __init__(self, rule: str, text: str, *, expected: str):
        self.rule, self.text, self.expected = rule, text, expected
        shown = text if len(text) <= 120 else text[:117] + "..."
        super().__init__(
            f"reply of a language model: expected {expected}, got {shown!r} ({rule}). "
            f"Give a fallback for such replies, or ask a model that keeps to the form."
        )
