"""Guards in front of the decision: what a request's text may hold, and what happens where it holds it.

    [guards.pii]                    # personal data and secrets: signals/pii.py
    action = "restrict"             # only these models may see it
    models = ["local"]

    [guards.injection]              # attempts to take the model over: signals/injection.py
    action = "flag"                 # noted in headers and metrics, nothing else happens

    [guards.language]               # signals/language.py
    action = "refuse"
    languages = ["en", "de"]

    [guards.novelty]                # foreign to all that the saved router knows: routers/novelty.py
    action = "flag"
    artefact = "novelty.npz"

None is on by default. All that are on are asked, whatever another has said: a refusal wins, restrictions narrow each
other, and a text of which a guard could read a part only is judged by that part and says so.
"""
# ruff: noqa: RUF009  # `option` makes a dataclass field, not a value

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from polyroute.artefact import load
from polyroute.constraints import only
from polyroute.errors import ConfigError, nearest
from polyroute.gateway.strict import Words, check, join, option
from polyroute.protocols import Constraint, Router
from polyroute.signals.injection import injection
from polyroute.signals.language import UNDETERMINED, language_of
from polyroute.signals.pii import KINDS, find_pii
from polyroute.types import Array, Candidate, Query

GUARDS = ("pii", "injection", "language", "novelty")
READ_BY = {"kinds": "pii", "threshold": "injection", "languages": "language", "artefact": "novelty"}
QUICK = 4_000  # characters up to which the event loop may look itself
DEPTH = 4  # how deep lists of parts nest
READ = 50_000  # characters of a request that are looked at: half from the head, half from the tail


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """One guard: [guards.pii], [guards.injection], [guards.language] or [guards.novelty]."""

    action: Literal["refuse", "flag", "restrict"] = option(
        "What happens: the request is refused, only flagged, or restricted to `models`."
    )
    models: tuple[str, ...] | None = option("With action restrict: ids of the models that may serve it.", None)
    needs: frozenset[str] = option(
        "Look only at requests that need one of these capabilities, as in [\"tools\"]. Default: at all.", frozenset()
    )  # fmt: skip
    kinds: tuple[str, ...] | None = option(f"Of pii: which to look for, of {', '.join(KINDS)}. Default: all.", None)
    threshold: float | None = option(
        "Of injection: the score from which on it counts. Default: 0.7.", None, above=0, most=1
    )
    languages: tuple[str, ...] | None = option(
        "Of language: ISO 639-1 codes that are welcome; a text too short to tell passes.", None, pattern="[a-z]{2}"
    )
    artefact: Path | None = option("Of novelty: a file with a fitted `novelty` router.", None)

    def __post_init__(self) -> None:
        check(self)


class Verdict(NamedTuple):
    """What the guards say of one request. It holds no text of the request."""

    refused: str | None  # the guard that refuses it
    reason: str  # for the client, where refused
    flags: tuple[str, ...]  # every guard that saw something, whatever its action
    models: frozenset[str] | None  # ids that may serve it; None: any
    partly_read: bool = False  # the text was longer than what guards read

    @property
    def constraints(self) -> list[Constraint]:
        """For the decision, beside its others."""
        if self.models is None:
            return []
        allowed = only(self.models)
        allowed.__name__ = f"guard {' and '.join(self.flags)}"
        return [allowed]


CLEAN = Verdict(None, "", (), None)
Look = Callable[
    [str, Array | None], str
]  # (text, embedding) -> what was seen, in words without the text; "" for nothing


class Guards:
    """All guards of a configuration. Safe to share between threads."""

    def __init__(
        self, guards: Mapping[str, GuardConfig], looks: Mapping[str, Look] | None = None, *,
        featuriser: str | None = None,
    ):  # fmt: skip
        """looks: guard -> how it looks; None: as configured. featuriser: name of the one that embeds requests.

        Raises: ArtefactError, or ConfigError where the novelty artefact is of another kind or featuriser.
        """
        self.guards = dict(guards)
        if looks is None:
            looks = {name: look_of(name, guard, featuriser) for name, guard in guards.items()}
        self.looks = dict(looks)

    def __bool__(self) -> bool:
        return bool(self.guards)

    def check(self, text: str, needs: Collection[str] = (), embedding: Array | None = None) -> Verdict:
        """Look at one request.

        text: see `guarded_text`. needs: of signals.needs. embedding: [d] of the
        featuriser that the novelty artefact names; without it that guard counts what it cannot judge as foreign.
        """
        if not self.guards:
            return CLEAN
        whole = len(text)
        if whole > READ:
            text = f"{text[: READ // 2]}\n{text[-READ // 2 :]}"
        flags, reasons, models = [], {}, None
        for name, guard in self.guards.items():
            if guard.needs and not guard.needs.intersection(needs):
                continue
            seen = self.looks[name](text, embedding)
            if not seen:
                continue
            flags.append(name)
            if guard.action == "refuse":
                reasons[name] = seen
            elif guard.action == "restrict":
                allowed = frozenset(guard.models or ())
                models = allowed if models is None else models & allowed
        refused = next(iter(reasons), None)
        if refused is None and models is not None and not models:
            refused, reasons = flags[0], {flags[0]: "restrictions that no model meets together"}
        reason = f"The guard {refused} refuses this request: {reasons[refused]}." if refused else ""
        return Verdict(refused, reason, tuple(flags), models, whole > READ)

    async def check_async(self, text: str, needs: Collection[str] = (), embedding: Array | None = None) -> Verdict:
        """`check`, in a thread where the text is long."""
        if len(text) <= QUICK or not self.guards:
            return self.check(text, needs, embedding)
        return await asyncio.get_running_loop().run_in_executor(None, self.check, text, needs, embedding)


def look_of(name: str, guard: GuardConfig, featuriser: str | None = None) -> Look:
    """How a guard looks at a text."""
    if name == "pii":
        kinds = guard.kinds or KINDS

        def personal(text: str, embedding: Array | None) -> str:
            found = sorted({finding.kind for finding in find_pii(text, kinds=kinds)})
            return f"it holds personal data or secrets ({', '.join(found)})" if found else ""

        return personal
    if name == "injection":
        threshold = 0.7 if guard.threshold is None else guard.threshold

        def hostile(text: str, embedding: Array | None) -> str:
            return "it looks like an attempt to change the model's instructions" if worst(text) >= threshold else ""

        return hostile
    if name == "language":
        welcome = frozenset(guard.languages or ())

        def foreign(text: str, embedding: Array | None) -> str:
            code = language_of(text).code
            return "" if code in welcome or code == UNDETERMINED else f"its language is {code}"

        return foreign
    return strange(guard.artefact, featuriser)


def worst(text: str) -> float:
    """The highest score of the stretches that `injection` reads at a time."""
    from polyroute.signals.injection import READ as STRETCH

    return max((injection(text[i : i + STRETCH]).score for i in range(0, max(len(text), 1), STRETCH)), default=0.0)


def strange(path: Path | None, featuriser: str | None = None) -> Look:
    """The novelty guard: seen where the text is foreign to every candidate the saved router knows."""
    if path is None:
        raise ConfigError("guards.novelty.artefact", got=None, expected="a file with a fitted novelty router")
    found = load(path)
    router: Router = found.router
    if not hasattr(router, "column_") or not hasattr(router, "edge_"):
        raise ConfigError("guards.novelty.artefact", got=type(router).__name__, expected="a router of kind novelty")
    if featuriser is not None and found.features != featuriser:
        hint = "Fit it again with the features of the router that serves."
        raise ConfigError(
            "guards.novelty.artefact", got=f"one fitted on {found.features}", expected=f"one fitted on {featuriser}",
            hint=hint,
        )  # fmt: skip
    pool = [Candidate(name) for name in router.column_]

    def look(text: str, embedding: Array | None) -> str:
        if embedding is None and any(name in ("distance", "spread") for name in getattr(router, "detectors", ())):
            return "it could not be compared with what is known"
        novelty = router.predict([Query("guard", text, embedding)], pool)["novelty"].mean
        return "it is foreign to everything this service is for" if float(novelty.min()) > 1 else ""

    return look


def guarded_text(messages: object) -> str:
    """What guards read of a decoded chat: every written part but the operator's own system and developer messages.

    Tool results are read, since that is where instructions of others come from; a bare text is read as it is.
    """
    if isinstance(messages, str):
        return messages
    if not isinstance(messages, Sequence) or isinstance(messages, bytes):
        return ""
    pieces: list[str] = []
    for message in messages:
        if isinstance(message, Mapping) and message.get("role") not in ("system", "developer"):
            pieces += written(message.get("content"))
            pieces += written(message.get("output"))  # of a function call, in Responses
    return "\n".join(pieces)


def written(content: object, depth: int = DEPTH) -> Iterator[str]:
    """Every text in a message's content, tool results included, whole: what is cut out is what an attack hides in."""
    if isinstance(content, str):
        if content:
            yield content
        return
    if isinstance(content, Mapping):
        content = [content]
    for part in content if isinstance(content, list | tuple) and depth else ():
        if isinstance(part, Mapping):
            for key in ("text", "content", "output"):
                yield from written(part.get(key), depth - 1)
        elif isinstance(part, str):
            yield part


def guard_faults(guards: Mapping[str, GuardConfig], models: Collection[str]) -> Iterator[ConfigError]:
    """What is wrong with the guards of a file whose every value is right. models: ids there are."""
    for name, guard in guards.items():
        path = join("guards", name)
        if name not in GUARDS:
            near = nearest(name, GUARDS)
            hint = f"Did you mean {near!r}?" if near else ""
            yield ConfigError(path, got=name, expected=f"one of {', '.join(GUARDS)}", hint=hint)
            continue
        for key, reader in READ_BY.items():
            if getattr(guard, key) is not None and reader != name:
                yield ConfigError(f"{path}.{key}", got=Words("a value"), expected=f"nothing: only {reader} reads it")
        yield from model_faults(guard, path, models)
        yield from own_faults(name, guard, path)


def model_faults(guard: GuardConfig, path: str, models: Collection[str]) -> Iterator[ConfigError]:
    """Models that are missing, superfluous or not there."""
    if guard.action == "restrict" and not guard.models:
        yield ConfigError(f"{path}.models", got=Words("nothing"), expected="ids of models that may serve such requests")
    if guard.action != "restrict" and guard.models is not None:
        hint = 'Say action = "restrict", or remove it.'
        yield ConfigError(f"{path}.models", got=list(guard.models), expected="nothing with this action", hint=hint)
    for i, model in enumerate(guard.models or ()):
        if model not in models:
            near = nearest(model, models)
            hint = f"Did you mean {near!r}?" if near else ""
            yield ConfigError(f"{path}.models[{i}]", got=model, expected="the id of a model", hint=hint)


def own_faults(name: str, guard: GuardConfig, path: str) -> Iterator[ConfigError]:
    """What one kind of guard needs."""
    for i, kind in enumerate(guard.kinds or ()):
        if kind not in KINDS:
            yield ConfigError(f"{path}.kinds[{i}]", got=kind, expected=f"one of {', '.join(KINDS)}")
    if name == "language" and not guard.languages:
        yield ConfigError(f"{path}.languages", got=Words("nothing"), expected='codes, as in ["en", "de"]')
    if name == "novelty" and (guard.artefact is None or not guard.artefact.is_file()):
        got: Any = None if guard.artefact is None else str(guard.artefact)
        yield ConfigError(f"{path}.artefact", got=got, expected="a file that exists")
