"""From a configuration to a gateway that is ready to serve."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from polyroute.artefact import load
from polyroute.constraints import only
from polyroute.data.catalogue import catalogue
from polyroute.errors import ConfigError
from polyroute.gateway.app import Gateway
from polyroute.gateway.backends.build import build_backends
from polyroute.gateway.brain import Brain
from polyroute.gateway.choice import ServedPolicy, objective_for
from polyroute.gateway.client import Client, ClientConfig
from polyroute.gateway.config import Config, PolicyConfig
from polyroute.gateway.conversations import stickiness
from polyroute.gateway.dial import proxies_from
from polyroute.gateway.guards import Guards
from polyroute.gateway.journal import Journal
from polyroute.gateway.profiles import part_with, profile_path, read_profile, with_profile
from polyroute.gateway.telemetry import Telemetry
from polyroute.policies.budget import Budget, BudgetConfig
from polyroute.policies.deadline import Deadline
from polyroute.policies.explore import UCB, Epsilon, Thompson
from polyroute.policies.greedy import Greedy
from polyroute.protocols import Constraint, Featuriser, Policy, Router
from polyroute.pull import models_folder
from polyroute.routers.cascade import Cascade
from polyroute.routers.load import Load
from polyroute.routers.mix import Together
from polyroute.routers.price import Price
from polyroute.routers.running import RunningMean
from polyroute.signals import featuriser
from polyroute.types import Candidate, Objective, Query

COLD_START = "cold_start.npz"


@dataclass(frozen=True, slots=True)
class Fitted:
    """What predicts quality, and what has to be known to feed it."""

    router: Router
    name: str
    fingerprint: str
    features: str


def build(config: Config) -> Gateway:
    """Everything the gateway needs, nothing started: local models start with their first request.

    Raises: ConfigError, ArtefactError, ProfileError, MissingExtraError, UnknownNameError, each naming what to do.
    """
    brain = build_brain(config)
    pool = list(brain.pool)
    brain.featuriser(["a first text, so that the first request does not pay for loading"])
    transport = Client(ClientConfig(proxies=proxies_from(os.environ)))
    telemetry = Telemetry(models=[c.id for c in pool], policies=[*config.policies, "named"])
    return Gateway(
        brain=brain,
        backends=build_backends(
            config, transport, models=config.local.cache or models_folder(os.environ),
            logs=config.journal.path.parent / "logs",
        ),
        upstream_names={model.id: model.served_name for model in config.models},
        journal=Journal(
            config.journal.path, capacity=config.journal.capacity, flush_s=config.journal.flush_s,
            store=config.journal.store,
        ),
        telemetry=telemetry,
        transport=transport,
        timeouts=config.timeouts,
        client_keys=[key.reveal() for key in config.server.client_keys],
        allow_origins=[origin.lower() for origin in config.server.allow_origins],
        max_body=int(config.server.max_body_mb * 2**20),
        answer_requested=config.server.answer_model == "requested",
        warnings=config.warnings_for(pool, catalogue().profile),
        guards=Guards(config.guards, featuriser=brain.featuriser.name),
    )  # fmt: skip


def build_brain(config: Config) -> Brain:
    """What decides: pool, router and policies. Nothing is opened for writing, started or called; no secret is read."""
    fitted = load_router(config.router.artefact)
    embed = featuriser(fitted.features)
    pool, measured = measured_pool(config, fitted, embed)
    return Brain(
        pool=pool,
        policies={name: served(name, policy, pool, fitted.router) for name, policy in config.policies.items()},
        router=serving_router(fitted, pool, embed.dim),
        featuriser=embed,
        router_name=fitted.name,
        artefact=fitted.fingerprint,
        store=config.journal.store,
        measured=measured,
    )


def profiles_folder(config: Config) -> Path:
    """Where `polyroute calibrate` leaves profiles and the gateway looks for them."""
    return config.journal.path.parent / "profiles"


def measured_pool(config: Config, fitted: Fitted, embed: Featuriser) -> tuple[list[Candidate], dict[str, str]]:
    """The pool with measured profiles where the configuration gives no ability, and in words which those are.

    Raises: ProfileError for a file that is there and cannot be read.
    """
    pool, notes = config.candidates(catalogue().profile), {}
    reader = part_with(fitted.router, "measure")
    for i, model in enumerate(config.models):
        path = profile_path(profiles_folder(config), model.id)
        if not model.ability and (found := read_profile(path, model.id)) is not None:
            keep = model.tokens_per_s is not None
            pool[i] = with_profile(pool[i], found, fitted.fingerprint, reader, embed, keep_speed=keep)
            notes[model.id] = f"measured {found.time[:10]} with {len(found.questions)} questions ({path})"
    return pool, notes


def load_router(where: str) -> Fitted:
    """The fitted router of the configuration: the one that ships, or a file that `polyroute fit` wrote."""
    if where == "default":
        with as_file(files("polyroute.data").joinpath(COLD_START)) as path:
            found = load(path)
        return Fitted(found.router, "default", found.fingerprint, found.features)
    found = load(Path(where))
    if found.features.startswith("recorded-"):
        raise ConfigError(
            "router.artefact", got=f"a router fitted on {found.features}",
            expected="one whose features can be made from live text",
            hint="Fit again with --features static-1 or --features minilm-1.",
        )  # fmt: skip
    return Fitted(found.router, found.kind, found.fingerprint, found.features)


def serving_router(fitted: Fitted, pool: Sequence[Candidate], dim: int) -> Together:
    """Quality as fitted; cost from prices and expected length; latency learned while serving.

    What a candidate gets that the fitted router never saw is that router's matter: its prior, or its price.
    Raises: ConfigError where the router knows neither the candidates nor has anything to fall back on.
    """
    quality = fitted.router
    probe = [Query("probe", "probe", np.zeros(dim, dtype=np.float32), num_tokens=1)]
    estimates = quality.predict(probe, pool[:0])
    if "quality" not in estimates:
        raise ConfigError("router.artefact", got=sorted(estimates), expected="a router that predicts quality")
    quality.predict(probe, pool)  # UnknownCandidateError now rather than at the first request
    own_cost = [] if "cost" in estimates else [Price(RunningMean())]
    return Together([quality, *own_cost, Load(RunningMean())])


def served(name: str, policy: PolicyConfig, pool: Sequence[Candidate], router: Router) -> ServedPolicy:
    """A virtual model from its configuration. Raises: ConfigError where it wants answers read and nobody can."""
    kept = [c for c in pool if policy.models is None or c.id in policy.models]
    trade_off = None if policy.weights is not None else policy.trade_off if policy.trade_off is not None else 0.3
    objective = objective_for(trade_off, kept) if trade_off is not None else Objective(dict(policy.weights or {}))
    ways: dict[str, Policy] = {
        "none": Greedy(), "epsilon": Epsilon(policy.epsilon), "ucb": UCB(), "thompson": Thompson(),
    }  # fmt: skip
    chooser = ways[policy.explore]
    if policy.deadline_s is not None:
        chooser = Deadline(policy.deadline_s, inner=chooser)
    constraints: list[Constraint] = []
    if policy.needs:
        able = [c.id for c in kept if policy.needs <= c.profile.offers]
        constraints.append(only(able))
    settle = None
    if policy.budget_usd_per_request is not None:
        cheapest = min(kept, key=lambda c: (c.profile.price_out, c.profile.price_in)).id
        limit = policy.budget_usd_per_request
        budget = Budget(BudgetConfig(limit=limit, tolerance=0.01, fallback=cheapest), chooser)
        chooser, settle = budget, budget.spent
        constraints.append(budget.within_budget)
    return ServedPolicy(
        name=name, policy=chooser, objective=objective, pool=kept, constraints=constraints, trade_off=trade_off,
        settle=settle, sticky=stickiness(policy.sticky), cascade=reader_of(name, policy, router),
    )  # fmt: skip


def reader_of(name: str, policy: PolicyConfig, router: Router) -> Cascade | None:
    """Who reads the answers of a policy's requests. Raises: ConfigError."""
    able = isinstance(router, Cascade) and bool(router.rungs_)
    if policy.read_answers and not able:
        raise ConfigError(
            f"policies.{name}.read_answers", got=f"true with a router of kind {type(router).__name__}",
            expected="a cascade that has learned from answers",
            hint="Fit one with `polyroute fit --router cascade --answers FILES` and name it in [router] artefact.",
        )  # fmt: skip
    return router if isinstance(router, Cascade) and able and policy.read_answers is not False else None
