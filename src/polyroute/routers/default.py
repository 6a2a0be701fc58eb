"""The router `auto` uses: recognise the task, look up what each candidate scores there, add what similarity tells.

Letters: n queries, m candidates, d width of what is read of a query, c tasks, l landmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from polyroute.errors import NotFittedError, OutcomesError
from polyroute.protocols import Router
from polyroute.routers.newcomers import LIMIT, Newcomers, ease, keys_of, learn_newcomers, newcomers_among
from polyroute.routers.residual import Kernel, Left, learn_kernel, learn_left
from polyroute.routers.rows import (
    PerPool,
    check_shape,
    embeddings,
    extend,
    nothing,
    observed,
    prompt_tokens,
    unit_rows,
    within,
)
from polyroute.routers.tasklines import Lines, learn_lines
from polyroute.routers.tasks import (
    Classes,
    Prior,
    believe,
    classes_of,
    learn_prior,
    learn_recogniser,
    recognise,
    sums_of,
)
from polyroute.routers.wording import Wording, learn_wording
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

WORDING = 2.0  # how much the wording counts beside a unit embedding
FOLDS = 5
CAUTION = 0.5  # std by which a candidate hardly known is rated lower: the largest of many estimates is luck
LEAST, EACH = 0.2, 0.01  # caution with many answers, and by how much an answer lowers it until then
ASKED = ("column", "task", "ease of the query", "score", "prompt tokens", "USD, or NaN")  # what is kept of an answer
CHUNK = 256  # queries estimated at once: what is in between stays in a core's cache


def able(pool: Sequence[Candidate]) -> tuple[Array, list[Candidate]]:
    """The candidates whose profile states abilities, and their columns."""
    at = [j for j, candidate in enumerate(pool) if candidate.profile.ability]
    return np.array(at, dtype=np.intp), [pool[j] for j in at]


class Known(NamedTuple):
    """What is worked out for a pool once, not for each query."""

    table: Array  # [c, 2m] mean score on each task, then its square plus its doubt
    weight: Array  # [l, m] what similarity adds
    unsure: Array  # [m] variance of what similarity leaves
    cost: Array | None  # [c, 3m] of the lines of cost; None: no costs were seen


class Default:
    """Estimate quality, and cost where the table has it, as a task's mean plus what similar queries add to it.

    A multinomial logistic regression on the embedding and the hashed words of the text says which task a query belongs
    to, with doubt; tasks are the labels `dataset` and `topic`, or clusters where a table has none. Each candidate has a
    mean a task, shrunk to what is usual there and to how it does elsewhere. What that leaves over is a kernel ridge
    within each data set, part common to all candidates, part each one's own, as strong as held-out folds bear out:
    often not at all.
    Cost is a line on prompt tokens a task. Candidates never seen are served from what is usual (and their price);
    a few answers given to `update` move them from there. Both are rated half a std lower than expected, so that what is
    hardly known is not chosen for its luck; fit again to be rid of that. The std is the doubt about the mean.

    prior: a router fitted beforehand that reads `profile.ability`; it estimates the candidates whose profile states
    abilities, which somebody measured there or knows. None: they are estimated as all others.
    """

    metric = "quality"

    def __init__(self, seed: int = 0, prior: Router | None = None):
        self.seed, self.prior = seed, prior
        self._able = PerPool(able)
        self.column_: dict[str, int] | None = None
        self.newcomers_: Newcomers | None = None  # None: from a file of an earlier version
        self.asked_ = np.zeros((len(ASKED), 0))  # [6, a] newcomers' answers
        self._believed: dict[int, tuple[Array, Array]] = {}
        self._known = PerPool(self._work_out)

    def fit(self, outcomes: Outcomes) -> Self:
        y, seen = observed(outcomes, self.metric)
        some = seen.any(axis=1)
        if not some.any():
            raise OutcomesError("values['quality']: expected at least one outcome to learn from, got none.")
        rng = np.random.default_rng(self.seed)
        if not some.all():
            outcomes, y, seen = outcomes.take(some), y[some], seen[some]
        self.width_ = embeddings(outcomes.queries).shape[1]
        self.wording_ = learn_wording([query.text for query in outcomes.queries], rng)
        x = self._read(outcomes.queries)
        tasks = classes_of(outcomes, x[:, : self.width_], rng)
        c = len(tasks.parent)
        self.recogniser_ = learn_recogniser(x, tasks.member, c)
        self.tasks_ = tasks.names
        few = newcomers_among(seen)
        everyone, outcomes, y, seen = outcomes, _only(outcomes, ~few), y[:, ~few], seen[:, ~few]
        self.column_ = {}
        at = extend(self.column_, outcomes.pool)
        self.sums_ = sums_of(y, seen, np.eye(c)[tasks.member])
        assert list(at) == list(range(len(outcomes.pool)))
        self.prior_ = learn_prior(self.sums_, tasks.parent, outcomes.pool)
        self.kernel_ = learn_kernel(x, tasks, rng)
        self.left_ = self._learn_left(outcomes, x, y, seen, tasks)
        self.lines_ = learn_lines(outcomes, tasks.member, c)
        table = believe(self.prior_, self.sums_, outcomes.pool).mean
        self.newcomers_ = learn_newcomers(y, seen, tasks.member, tasks.parent, table, outcomes.queries)
        self.asked_ = np.zeros((len(ASKED), 0))
        if few.any():
            self._count(_only(everyone, few), x, np.eye(c, dtype=np.float32)[tasks.member])
        self._forget()
        return self

    def _forget(self) -> None:
        """What was worked out no longer holds."""
        self._believed = {}
        self._known.clear()

    def _learn_left(self, outcomes: Outcomes, x: Array, y: Array, seen: Array, tasks: Classes) -> Left:
        """Fit what the table leaves over, recognising each query by folds that had not seen it."""
        group = np.asarray(outcomes.labels.get("group", np.array([q.id for q in outcomes.queries]))).astype(str)
        ids = np.array([query.id for query in outcomes.queries])
        member = np.unique(np.where(group == "", ids, group), return_inverse=True)[1]
        fold = np.random.default_rng(self.seed).permutation(member.max() + 1)[member] % FOLDS
        share = np.zeros((len(x), len(tasks.parent)), np.float32)
        for k in np.unique(fold):
            away = fold != k
            weight = learn_recogniser(x[away], tasks.member[away], len(tasks.parent))
            share[~away] = recognise(x[~away], weight)
        table = believe(self.prior_, self.sums_, outcomes.pool).mean
        left = np.where(seen, y - share @ table, 0.0)
        return learn_left(self.kernel_, self.kernel_(x, share), left, seen, fold)

    def _read(self, queries: Sequence[Query]) -> Array:
        """What is read of queries, [n, d] float32: the unit embedding and the wording."""
        x = np.empty((len(queries), self.width_ + self.wording_.table.shape[1]), dtype=np.float32)
        x[:, : self.width_] = unit_rows(embeddings(queries, self.width_))
        if x.shape[1] > self.width_:
            np.multiply(self.wording_([query.text for query in queries]), WORDING, out=x[:, self.width_ :])
        return x

    def update(self, outcomes: Outcomes) -> None:
        """Count more outcomes into the tasks' means, by halves where a query may belong to two."""
        if self.column_ is None:
            raise NotFittedError(self)
        x = self._read(outcomes.queries)
        self._count(outcomes, x, recognise(x, self.recogniser_))
        self._forget()

    def _count(self, outcomes: Outcomes, x: Array, share: Array) -> None:
        """Count outcomes of queries x [n, d] that belong to tasks by share [n, c]; candidates may be new."""
        assert self.column_ is not None
        y, seen = observed(outcomes, self.metric)
        at = extend(self.column_, outcomes.pool)
        gained = len(self.column_) - self.sums_.shape[2]
        self.sums_ = np.pad(self.sums_, ((0, 0), (0, 0), (0, gained)))
        self.lines_ = self.lines_.widened(gained)
        if not len(outcomes):
            return
        if self.newcomers_ is not None:
            self._ask(self.newcomers_, outcomes, at, share)
        # A score is counted net of what similarity will add to it again.
        extra = self.kernel_(x, share) @ self._weight(at)
        self.sums_[:, :, at] += sums_of(y - extra, seen, share)
        self.lines_ = self.lines_.updated(outcomes, share, at)

    def _ask(self, newcomers: Newcomers, outcomes: Outcomes, at: Array, share: Array) -> None:
        """Keep newcomers' answers one by one, with how easy the query is: as `fit` found it, or by who answers here."""
        y, seen = observed(outcomes, self.metric)
        joined = at >= self.left_.own.shape[1]
        rows, columns = np.nonzero(seen & joined)
        known, task, easy = newcomers.find(keys_of(outcomes.queries))
        task = np.where(known, task, share.argmax(axis=1))
        others = _only(outcomes, ~joined)
        if others.pool and not known.all():
            table = believe(self.prior_, self.sums_[:, :, at[~joined]], others.pool).mean
            expected = np.clip(table[task], 0.02, 0.98)
            usual = ease(expected, np.zeros(expected.shape, bool), expected)
            easy = np.where(known, easy, ease(y[:, ~joined], seen[:, ~joined], expected) - usual)
        paid = np.where(outcomes.observed, outcomes.values.get("cost", np.nan), np.nan)[rows, columns]
        tokens = prompt_tokens(outcomes.queries)[rows]
        new = np.stack([at[columns], task[rows], easy[rows], y[rows, columns], tokens, paid]).astype(float)
        self.asked_ = np.hstack([self.asked_, new])

    def _weight(self, at: Array) -> Array:
        """What similarity adds for the candidates in these columns, [l, m]; for new ones the common part."""
        own = self.left_.own
        inside = at < own.shape[1]
        weight = np.repeat(self.left_.common[:, None], len(at), axis=1)
        weight[:, inside] += own[:, at[inside]]
        return weight

    def _answers(self, column: int) -> int | None:
        """How many answers a newcomer gave, what they say being in `_believed` then; None for any other candidate."""
        rows = self.asked_[0] == column
        answers = int(rows.sum())
        if self.newcomers_ is None or not 0 < answers < LIMIT:
            return None
        if column not in self._believed:
            _, task, easy, score = self.asked_[:4, rows]
            self._believed[column] = self.newcomers_.believe(task.astype(np.intp), easy, score)
        return answers

    def _work_out(self, pool: Sequence[Candidate]) -> Known:
        assert self.column_ is not None
        at = np.array([self.column_.get(candidate.id, len(self.column_)) for candidate in pool], dtype=np.intp)
        sums = np.concatenate([self.sums_, np.zeros((3, self.sums_.shape[1], 1))], axis=2)[:, :, at]
        mean, variance = believe(self.prior_, sums, pool)
        caution = np.where(at >= self.left_.own.shape[1], CAUTION, 0.0)
        for j, column in enumerate(at.tolist()):
            if (answers := self._answers(column)) is not None:
                mean[:, j], variance[:, j] = self._believed[column]
                caution[j] = max(CAUTION - EACH * answers, LEAST)
        mean = np.maximum(mean - caution * np.sqrt(variance), 0.0)
        std = self.left_.std
        own = np.where((at + 1 < len(std)), at + 1, 0)
        table = np.hstack([mean, mean**2 + variance]).astype(np.float32)
        cost = self._costs(at, pool) if self.lines_.any else None
        return Known(table, self._weight(at).astype(np.float32), std[own] ** 2, cost)

    def _costs(self, at: Array, pool: Sequence[Candidate]) -> Array:
        """The lines' table, those of newcomers with paid answers by what these cost."""
        table, m = self.lines_.table(at, pool), len(pool)
        for j, column in enumerate(at.tolist()):
            _, task, _, _, tokens, paid = self.asked_[:, (self.asked_[0] == column) & np.isfinite(self.asked_[5])]
            if 0 < len(paid) < LIMIT and paid.sum() > 0:
                base, slope = self.lines_.of_few(task.astype(np.intp), tokens, paid)
                table[:, j], table[:, m + j], table[:, 2 * m + j] = base, slope, 2 * base**2
        return table

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.column_ is None:
            raise NotFittedError(self)
        known, m = self._known(pool), len(pool)
        if not queries or not m:
            empty = nothing(self.metric, len(queries), m)
            return {**empty, **nothing("cost", len(queries), m)} if self.lines_.any else empty
        at, stated = self._able(pool)
        if self.prior is not None and len(stated) == m and known.cost is None:
            return {self.metric: self.prior.predict(queries, pool)[self.metric]}
        parts = [self._estimate(queries[i : i + CHUNK], known, m) for i in range(0, len(queries), CHUNK)]
        found = parts[0]
        if len(parts) > 1:
            columns = {metric: zip(*(part[metric] for part in parts), strict=True) for metric in parts[0]}
            found = {metric: Estimate(*map(np.concatenate, column)) for metric, column in columns.items()}
        if self.prior is None or not stated:
            return found
        theirs = self.prior.predict(queries, stated)[self.metric]
        for mine, other in zip(found[self.metric], theirs, strict=True):
            if other is not None:
                mine[:, at] = other
        return found

    def explain(self, query: Query) -> dict[str, Any]:
        """What the router sees in one query: the share of each task it may belong to, and what the prior sees."""
        if self.column_ is None:
            raise NotFittedError(self)
        share = recognise(self._read([query]), self.recogniser_)[0]
        order = np.argsort(-share, kind="stable")
        seen = {"tasks": {str(self.tasks_[k]): round(float(share[k]), 3) for k in order}}
        explain = getattr(self.prior, "explain", None)
        return seen if explain is None else seen | explain(query)

    def _estimate(self, queries: Sequence[Query], known: Known, m: int) -> Estimates:
        """Estimates for as many queries as fit a core's cache."""
        x = self._read(queries)
        share = recognise(x, self.recogniser_)
        both = share @ known.table
        mean, square = both[:, :m], both[:, m:]
        variance = np.maximum(square - mean * mean, 0.0) + known.unsure
        mean = mean + self.kernel_(x, share) @ known.weight
        found = {self.metric: Estimate(within(self.metric, mean), np.sqrt(variance))}
        if known.cost is not None:
            found["cost"] = self.lines_.read(share, prompt_tokens(queries), known.cost)
        return found

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.column_ is None:
            raise NotFittedError(self)
        arrays = {"recogniser": self.recogniser_, "sums": self.sums_}
        held_by_name = {"tasks": list(map(str, self.tasks_)), "prior": self.prior}
        parts: dict[str, Any] = {"wording": self.wording_, "prior": self.prior_, "left": self.left_}
        parts["lines"] = self.lines_
        for part, held in parts.items():
            arrays |= {f"{part}.{name}": value for name, value in held._asdict().items()}
        arrays |= {"landmarks": self.kernel_.landmarks, "lengths": self.kernel_.length, "same": self.kernel_.same}
        if self.newcomers_ is not None:
            arrays |= {f"newcomers.{name}": value for name, value in self.newcomers_._asdict().items()}
            arrays["asked"] = self.asked_
        params = {"seed": self.seed, "candidates": list(self.column_), "width": self.width_}
        return params | held_by_name | {"scale": self.kernel_.scale}, arrays

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(params["seed"], params.get("prior"))
        router.width_ = int(params["width"])
        part = {
            name: {key.partition(".")[2]: np.asarray(value) for key, value in arrays.items() if key.startswith(name)}
            for name in ("wording.", "prior.", "left.", "lines.", "newcomers.")
        }
        router.wording_ = Wording.of(**part["wording."])
        d = router.width_ + router.wording_.table.shape[1]
        recogniser = np.asarray(arrays["recogniser"], np.float32)
        router.recogniser_ = check_shape("recogniser", recogniser, (1 + d, None))
        c, k = recogniser.shape[1], len(params["candidates"])
        router.tasks_ = check_shape("tasks", np.array(params.get("tasks", list(map(str, range(c))))), (c,))
        landmarks = check_shape("landmarks", np.asarray(arrays["landmarks"], np.float32), (None, d))
        length = check_shape("lengths", np.asarray(arrays["lengths"], np.float32), (len(landmarks),))
        same = check_shape("same", np.asarray(arrays["same"], np.float32), (c, len(landmarks)))
        router.kernel_ = Kernel(landmarks, length, float(params["scale"]), same)
        router.prior_ = Prior(**part["prior."])
        check_shape("prior.covariance", router.prior_.covariance, (c, c))
        router.left_ = Left(**part["left."])
        check_shape("left.own", router.left_.own, (len(landmarks), len(router.left_.std) - 1))
        router.lines_ = Lines(**part["lines."])
        check_shape("lines.line", router.lines_.line, (2, c, k))
        router.sums_ = check_shape("sums", np.asarray(arrays["sums"], float), (3, c, k))
        router.column_ = {name: j for j, name in enumerate(params["candidates"])}
        if part["newcomers."]:
            router.newcomers_ = Newcomers.of(**part["newcomers."])
            check_shape("newcomers.mean", router.newcomers_.mean, (c,))
            router.asked_ = check_shape("asked", np.asarray(arrays["asked"], float), (len(ASKED), None))
        return router


def _only(outcomes: Outcomes, columns: Array) -> Outcomes:
    """The candidates of some columns [m] bool."""
    if columns.all():
        return outcomes
    return outcomes.among([candidate.id for candidate, kept in zip(outcomes.pool, columns, strict=True) if kept])
