"""What `polyroute calibrate` measured of a model: one JSON file a model, read when the gateway starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
import numpy as np

from polyroute.errors import ProfileError
from polyroute.protocols import Featuriser
from polyroute.signals.conversation import routing_text
from polyroute.types import Array, Candidate, Query

PROFILE = "polyroute-profile"
VERSION = 1


class Asked(msgspec.Struct, frozen=True):
    """One question of a calibration and how it was answered."""

    prompt: str
    score: float  # 0..1


class Measured(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A model's measured profile. Abilities are on the scale of one router; `questions` give them for another."""

    format: str = PROFILE
    version: int = VERSION
    model: str
    time: str  # UTC, ISO 8601
    artefact: str  # fingerprint of the router whose difficulties `ability` is measured against
    ability: dict[str, float]  # skill -> logit
    ability_std: float
    questions: list[Asked]
    tokens_per_s: float | None = None  # None: not known
    first_token_s: float | None = None
    price_in: float | None = None  # USD per 1e6 tokens, local models only; for the operator to read, never applied
    price_out: float | None = None
    seed: int = 0  # of the questions
    per_level: int = 0


class Measure(Protocol):
    """A router, or a part of one, that reads abilities from scores; see routers/irt.py."""

    def measure(self, queries: Sequence[Query], scores: Array) -> tuple[dict[str, float], float]: ...


def part_with(router: Any, method: str) -> Any | None:
    """The router itself or the first of its parts that has this method, else None."""
    if hasattr(router, method):
        return router
    parts = [getattr(router, "router", None), getattr(router, "prior", None), *getattr(router, "routers", ())]
    found = (part_with(part, method) for part in parts if part is not None)
    return next((part for part in found if part is not None), None)


def abilities(measure: Measure, embed: Featuriser, questions: Sequence[Asked]) -> tuple[dict[str, float], float]:
    """({skill: logit}, std) from scored questions, each read as the gateway would read it in a request."""
    texts = [routing_text([{"role": "user", "content": asked.prompt}]) for asked in questions]
    rows = embed(texts)
    queries = [Query(str(i), text, rows[i]) for i, text in enumerate(texts)]
    return measure.measure(queries, np.array([asked.score for asked in questions]))


def profile_path(folder: Path, model: str) -> Path:
    """Where a model's profile lies; a name with a slash is no folder."""
    return folder / f"{quote(model, safe=' ')}.json"


def write_profile(measured: Measured, path: Path) -> None:
    """In one step: a reader finds the old file or the new one. Raises: ProfileError where it cannot be written."""
    text = msgspec.json.format(msgspec.json.encode(measured), indent=1)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(text + b"\n")
        temporary.replace(path)
    except OSError as error:
        raise ProfileError(path, str(error), expected="a place to write to") from None


def read_profile(path: Path, model: str) -> Measured | None:
    """The profile in a file, None where there is no file. Raises: ProfileError for anything but a profile of it."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ProfileError(path, str(error)) from None
    try:
        head = msgspec.json.decode(content)
        if not isinstance(head, dict) or head.get("format") != PROFILE:
            raise ProfileError(path, "a file of another kind")
        if head.get("version") != VERSION:
            raise ProfileError(path, f"version {head.get('version')!r}", expected=f"version {VERSION}")
        measured = msgspec.convert(head, Measured)
    except msgspec.MsgspecError as error:
        raise ProfileError(path, str(error)) from None
    numbers = [*measured.ability.values(), *(asked.score for asked in measured.questions)]
    if measured.model != model:
        raise ProfileError(path, f"one of {measured.model!r}", expected=f"the profile of {model!r}")
    if not measured.questions or not measured.ability_std > 0 or not np.isfinite(numbers).all():
        raise ProfileError(path, "a profile without a finite number in its place")
    return measured


def with_profile(
    candidate: Candidate, measured: Measured, artefact: str, measure: Measure | None, embed: Featuriser,
    *, keep_speed: bool = False,
) -> Candidate:  # fmt: skip
    """The candidate with what was measured of it. Abilities are read anew where they are of another router.

    artefact: fingerprint of the router that will read them. keep_speed: the configuration
    gives the speed and wins.
    """
    ability, std = dict(measured.ability), measured.ability_std
    if measured.artefact != artefact and measure is not None:
        ability, std = abilities(measure, embed, measured.questions)
    profile = candidate.profile
    speed = profile.tokens_per_s if keep_speed else measured.tokens_per_s or profile.tokens_per_s
    return replace(
        candidate,
        profile=replace(
            profile, ability=ability, ability_std=std, tokens_per_s=speed,
            first_token_s=measured.first_token_s or profile.first_token_s,
        ),
    )  # fmt: skip
