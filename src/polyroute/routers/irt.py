"""Quality from a query's difficulty and a candidate's abilities: the router that works before any outcome is seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import add, mul
from typing import Any, NamedTuple, Self

import numpy as np

from polyroute.errors import MissingExtraError, NotFittedError, OutcomesError
from polyroute.routers.rows import PerPool, embeddings, nothing, observed
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

SKILL_SCALE = 10.0  # a penalty on the weight of a column scaled by 10 weighs a hundredth
SMALL = 16  # candidates for which one query is estimated sooner in plain numbers
SKILL_SPREAD = 0.75  # logits by which a candidate's skills differ from its level; what the shipped fit shows


class IRT:
    """P(right) = sigmoid(skills(query) . ability(candidate) - difficulty(query)).

    `skills` is a mixture over named skills, learned from `labels["skill"]` (or `labels["dataset"]`); `difficulty` is
    linear in the embedding and the skills and shared by all candidates; `ability` is one logit a skill. A candidate
    brings its abilities in `profile.ability` or was seen in fit; of one that is neither, the router knows only how
    abilities are spread, and says so in the std. So a pool may change while we serve.

    Source: item response theory (Rasch 1960) with a multi-skill ability; difficulty from text as in IRT-Router
    (arXiv:2506.01048). Here difficulty is ridge-regularised and abilities are shrunk to the candidate's own mean.
    """

    def __init__(self, metric: str = "quality", *, l2: float = 10.0, shrink: float = 4.0, skill_l2: float = 1e-3):
        self.metric, self.l2, self.shrink, self.skill_l2 = metric, l2, shrink, skill_l2
        self._standing = PerPool(self._work_out)
        self._both: Array | None = None

    def fit(self, outcomes: Outcomes, weight: Array | None = None) -> Self:
        """Learn skills, difficulty and abilities. weight: [n] how often each query counts; None: once.

        Raises: OutcomesError without a label to name skills by.
        """
        x = embeddings(outcomes.queries)  # [n, d]
        label = outcomes.labels.get("skill", outcomes.labels.get("dataset"))
        if label is None:
            raise OutcomesError("labels: expected a column skill or dataset that names skills, got none.")
        self.skills_, target = np.unique(np.asarray(label, dtype=str), return_inverse=True)
        weight = np.ones(len(x)) if weight is None else np.asarray(weight, dtype=float)
        found = softmax_regression(x, target, len(self.skills_), self.skill_l2, weight)
        self.skill_weight_, self.skill_bias_ = found[0].astype(np.float32), found[1]  # float32 is what is saved
        mixture = self.mixture(x)  # [n, s]
        y, known = observed(outcomes, self.metric)  # [n, m]
        count = known * weight[:, None]
        solved = abilities_and_difficulty(mixture, difficult(x, mixture), y, count, self.l2, self.shrink)
        self.ability_, self.ability_std_, self.difficulty_, self.difficulty_std_ = solved
        self.column_ = {candidate.id: j for j, candidate in enumerate(outcomes.pool)}
        self._both = None
        self._standing.clear()
        seen = self.ability_.mean(axis=0)
        self.prior_mean_ = seen  # [s]
        self.prior_std_ = float(max(0.5, np.sqrt(self.ability_.mean(axis=1).var() + 0.25)))
        return self

    def mixture(self, x: Array) -> Array:
        """[n, s] share of each skill in each query; rows sum to 1."""
        return softmax(x @ self.skill_weight_ + self.skill_bias_)

    def _fused(self) -> Array:
        """[d, s + 1] float32: both linear maps of the embedding in one."""
        if self._both is None:
            d = len(self.skill_weight_)
            self._both = np.column_stack([self.skill_weight_, self.difficulty_[:d]]).astype(np.float32)
        return self._both

    def abilities(self, pool: Sequence[Candidate]) -> tuple[Array, Array]:
        """(ability [m, s], std [m]) logits: from the profile where it has any, else from fit, else the spread."""
        ability = np.repeat(self.prior_mean_[None], len(pool), axis=0)
        std = np.full(len(pool), self.prior_std_)
        for j, candidate in enumerate(pool):
            profile = candidate.profile
            if profile.ability:
                ability[j] = self.from_profile(profile.ability)
                std[j] = 0.3 if profile.ability_std is None else profile.ability_std
            elif candidate.id in self.column_:
                ability[j] = self.ability_[self.column_[candidate.id]]
                std[j] = self.ability_std_[self.column_[candidate.id]]
        return ability, std

    def from_profile(self, ability: Mapping[str, float]) -> Array:
        """[s] logits: named skills as given, `general` or the mean of the given ones for the rest."""
        shape = self.prior_mean_ - self.prior_mean_.mean()  # skills differ in level alike for all candidates
        given = {k: v for k, v in ability.items() if k != "general"}
        known = {name: i for i, name in enumerate(self.skills_)}
        offsets = [v - shape[known[k]] for k, v in given.items() if k in known]
        level = ability.get("general", float(np.mean(offsets)) if offsets else float(self.prior_mean_.mean()))
        row = level + shape
        for name, value in given.items():
            if name in known:
                row[known[name]] = value
        return row

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if not hasattr(self, "difficulty_"):
            raise NotFittedError(self)
        if not len(queries) or not len(pool):
            return nothing(self.metric, len(queries), len(pool))
        x = embeddings(queries, width=len(self.skill_weight_))
        above, doubt, plain = self._standing(pool)
        seen = x @ self._fused()  # [n, s + 1]: skills, and the part of difficulty that is linear in the embedding
        if plain is not None and len(x) == 1:
            return {self.metric: plain.estimate(seen.tolist()[0])}
        share = raised(seen[:, :-1] + self.skill_bias_)
        sums = share @ above  # [n, m + 1]: of abilities and, last, of the shares, which need no sum of 1 this way
        mean = 1 / (1 + np.exp(seen[:, -1:] - sums[:, :-1] / sums[:, -1:]))
        return {self.metric: Estimate(mean, mean * (1 - mean) * doubt)}

    def _work_out(self, pool: Sequence[Candidate]) -> tuple[Array, Array, Plain | None]:
        """([s, m + 1] ability above each skill's own level, then ones; [m] std of a logit; both as lists if few)."""
        ability, std = self.abilities(pool)
        level = SKILL_SCALE * self.difficulty_[len(self.skill_weight_) :]  # [s]
        above, doubt = ability - level, np.sqrt(std**2 + self.difficulty_std_**2)
        plain = Plain(self.skill_bias_.tolist(), above.tolist(), doubt.tolist()) if len(pool) <= SMALL else None
        return np.ascontiguousarray(np.vstack([above, np.ones(len(level))]).T), doubt, plain

    def explain(self, query: Query) -> dict[str, Any]:
        """What the router sees in one query: difficulty in logits, share of each skill."""
        x = embeddings([query], width=len(self.skill_weight_))
        shares = self.mixture(x)[0]
        return {
            "difficulty": float(difficult(x, shares[None])[0] @ self.difficulty_),
            "skills": {str(name): round(float(share), 3) for name, share in zip(self.skills_, shares, strict=True)},
        }

    def measure(self, queries: Sequence[Query], scores: Array) -> tuple[dict[str, float], float]:
        """Abilities of a candidate from its scores on some queries, for its profile: ({skill: logit}, std).

        scores: [n] in 0..1. Difficulty stays as fitted; the abilities start from the spread of the known candidates,
        so that a few dozen answers are enough. Raises: OutcomesError without a score.
        """
        y = np.asarray(scores, dtype=float)
        if not len(queries) or y.shape != (len(queries),) or not np.isfinite(y).all():
            raise OutcomesError(f"scores: expected a finite score for each of 1 or more queries, got {y!r}.")
        x = embeddings(queries, width=len(self.skill_weight_))
        mixture = self.mixture(x)
        offset = difficult(x, mixture) @ self.difficulty_
        s = len(self.prior_mean_)
        level = np.full((s, s), 1 / s)
        precision = level / self.prior_std_**2 + (np.eye(s) - level) / SKILL_SPREAD**2
        ability = self.prior_mean_.copy()
        for _ in range(20):
            p = 1 / (1 + np.exp(-(mixture @ ability - offset)))
            hessian = (mixture * np.maximum(p * (1 - p), 1e-4)[:, None]).T @ mixture + precision
            step = np.linalg.solve(hessian, mixture.T @ (p - y) + precision @ (ability - self.prior_mean_))
            ability = ability - step
        std = float(np.sqrt(np.diag(np.linalg.inv(hessian)).mean()))
        return {str(k): round(float(v), 3) for k, v in zip(self.skills_, ability, strict=True)}, round(std, 3)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if not hasattr(self, "difficulty_"):
            raise NotFittedError(self)
        params = {
            "metric": self.metric, "l2": self.l2, "shrink": self.shrink, "skill_l2": self.skill_l2,
            "skills": [str(s) for s in self.skills_], "candidates": list(self.column_),
            "prior_std": self.prior_std_, "difficulty_std": self.difficulty_std_,
        }  # fmt: skip
        arrays = {
            "skill_weight": self.skill_weight_, "skill_bias": self.skill_bias_,
            "ability": self.ability_, "ability_std": self.ability_std_, "prior_mean": self.prior_mean_,
            "difficulty": self.difficulty_,
        }  # fmt: skip
        return params, arrays

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        self = cls(params["metric"], l2=params["l2"], shrink=params["shrink"], skill_l2=params["skill_l2"])
        self.skills_ = np.array(params["skills"], dtype=str)
        self.column_ = {name: j for j, name in enumerate(params["candidates"])}
        self.prior_std_, self.difficulty_std_ = params["prior_std"], params["difficulty_std"]
        self.skill_weight_, self.skill_bias_ = arrays["skill_weight"], arrays["skill_bias"]
        self.ability_, self.ability_std_ = arrays["ability"], arrays["ability_std"]
        self.prior_mean_, self.difficulty_ = arrays["prior_mean"], arrays["difficulty"]
        return self


class Plain(NamedTuple):
    """The constants of a small pool as lists: for one query, a dozen array calls take longer than all the sums."""

    bias: list[float]  # [s]
    above: list[list[float]]  # [m][s]
    doubt: list[float]  # [m]

    def estimate(self, seen: list[float]) -> Estimate:
        """Quality [1, m]. seen: [s + 1] logits of the skills before their bias, and the difficulty."""
        logit = list(map(add, seen, self.bias))
        largest = max(logit)
        share = [math.exp(z - largest) for z in logit]
        half, whole = seen[-1] / 2, 2 * sum(share)
        mean = [0.5 + 0.5 * math.tanh(sum(map(mul, share, row)) / whole - half) for row in self.above]
        return Estimate(np.array([mean]), np.array([[p * (1 - p) * d for p, d in zip(mean, self.doubt, strict=True)]]))


def softmax(z: Array) -> Array:
    """Rows of z [n, s] as shares."""
    z = raised(z)
    return z / z.sum(axis=1, keepdims=True)


def raised(z: Array) -> Array:
    """exp(z) [n, s] up to a factor for each row, which keeps it within what a float can be."""
    return np.exp(z - z.max(axis=1, keepdims=True))


def difficult(x: Array, mixture: Array) -> Array:
    """[n, d + s] what difficulty is linear in. A skill's own level is hardly penalised: it is common to all."""
    return np.concatenate([x, SKILL_SCALE * mixture], axis=1)


def softmax_regression(x: Array, target: Array, num_classes: int, l2: float, count: Array) -> tuple[Array, Array]:
    """(weight [d, s], bias [s]) of a multinomial logistic regression. x: [n, d]; target: [n] int; count: [n]."""
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise MissingExtraError("scipy", "data") from None
    d = x.shape[1]
    onehot = np.eye(num_classes)[target]
    share = count / count.sum()

    def loss(flat: Array) -> tuple[float, Array]:
        weight, bias = flat[:-num_classes].reshape(d, num_classes), flat[-num_classes:]
        z = x @ weight + bias
        z -= z.max(axis=1, keepdims=True)
        total = np.log(np.exp(z).sum(axis=1))
        residual = (np.exp(z - total[:, None]) - onehot) * share[:, None]
        value = share @ (total - (z * onehot).sum(axis=1)) + 0.5 * l2 * (weight**2).sum()
        return value, np.concatenate([(x.T @ residual + l2 * weight).ravel(), residual.sum(axis=0)])

    x = x.astype(np.float64)
    start = np.zeros(d * num_classes + num_classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return found.x[:-num_classes].reshape(d, num_classes), found.x[-num_classes:]


def abilities_and_difficulty(
    mixture: Array, x: Array, y: Array, count: Array, l2: float, shrink: float, steps: int = 12
) -> tuple[Array, Array, Array, float]:
    """Newton's method for the convex problem logit = mixture . ability_m - x . w, with missing outcomes left out.

    mixture: [n, s]; x: [n, d]; y: [n, m] in 0..1; count: [n, m], 0 where not seen. l2: penalty on w; shrink: penalty
    on an ability's distance from its candidate's mean. Returns ability [m, s], its std [m] (logits), w [d], and the
    std that w leaves, logits.
    """
    s, d, m = mixture.shape[1], x.shape[1], y.shape[1]
    ability, w = np.zeros((m, s)), np.zeros(d)
    pull = shrink * (np.eye(s) - np.full((s, s), 1 / s)) + 1e-2 * np.eye(s)
    size = m * s + d
    for _ in range(steps):
        p = 1 / (1 + np.exp(-(mixture @ ability.T - (x @ w)[:, None])))  # [n, m]
        residual = count * (p - y)
        curve = count * np.maximum(p * (1 - p), 1e-4)
        hessian, gradient = np.zeros((size, size)), np.zeros(size)
        for j in range(m):
            at = slice(j * s, (j + 1) * s)
            hessian[at, at] = (mixture * curve[:, j : j + 1]).T @ mixture + pull
            hessian[at, m * s :] = -(mixture * curve[:, j : j + 1]).T @ x
            hessian[m * s :, at] = hessian[at, m * s :].T
            gradient[at] = mixture.T @ residual[:, j] + pull @ ability[j]
        hessian[m * s :, m * s :] = (x * curve.sum(axis=1)[:, None]).T @ x + l2 * np.eye(d)
        gradient[m * s :] = -x.T @ residual.sum(axis=1) + l2 * w
        step = np.linalg.solve(hessian, gradient)
        ability -= step[: m * s].reshape(m, s)
        w -= step[m * s :]
        if np.abs(step).max() < 1e-6:
            break
    covariance = np.linalg.inv(hessian)
    shared = covariance[m * s :, m * s :]
    own = x - mixture @ np.linalg.lstsq(mixture, x, rcond=None)[0]  # a level common to a skill is the abilities' matter
    doubt = ((own @ shared) * own).sum(axis=1).mean()
    of_text = ((x @ shared) * x).sum(axis=1)  # [n]
    std = np.zeros(m)
    for j in range(m):
        at = slice(j * s, (j + 1) * s)
        both = mixture @ covariance[at, at] - 2 * (x @ covariance[m * s :, at])  # they err in opposite directions
        std[j] = np.sqrt(max(((both * mixture).sum(axis=1) + of_text).mean() - doubt, 1e-6))
    return ability, std, w, float(np.sqrt(doubt))
