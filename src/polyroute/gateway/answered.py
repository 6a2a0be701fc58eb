"""The answers of a calibration in a file, so that an interrupted one can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from polyroute.data.probes import Probe
from polyroute.errors import ProfileError
from polyroute.gateway.probing import Answer

HEAD = {"format": "polyroute-answers", "version": 1}


def restored(path: Path, header: Mapping[str, object], asked: Sequence[Probe]) -> list[Answer]:
    """The answers an earlier run left, without its failures. No file: none.

    header: what has to be the same, or answers would not compare. A question that reads differently now is left out.
    Raises: ProfileError for answers of another run, and for a file of another kind.
    """
    header = {**HEAD, **header}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {name: content.get(name) for name in header}
        answers = msgspec.convert(content["answers"], list[Answer])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProfileError(path, f"something else ({error})", expected="a file of --save, or none") from None
    if found != header:
        differs = ", ".join(f"{name} {found[name]!r}" for name in header if found[name] != header[name])
        raise ProfileError(path, differs, expected=", ".join(f"{name} {value!r}" for name, value in header.items()))
    questions = {probe.id: probe.prompt for probe in asked}
    return [answer for answer in answers if answer.score is not None and questions.get(answer.id) == answer.prompt]


def save_answers(answers: Sequence[Answer], header: Mapping[str, object], path: Path) -> None:
    """In one step. Raises: ProfileError where it cannot be written."""
    text = json.dumps({**HEAD, **header, "answers": msgspec.to_builtins(answers)}, ensure_ascii=False, indent=1)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ProfileError(path, str(error), expected="a place to write to") from None
