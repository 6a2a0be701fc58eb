"""What a user asks for outright: to think hard, or to be quick. Not what a quoted document says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

DEFAULT_INTENTS: Mapping[str, Sequence[str]] = {
    "deep": ("think hard", "think harder", "think carefully", "think deeply", "think step by step", "reason carefully",
             "take your time", "double-check", "be thorough"),
    "fast": ("quick answer", "quickly", "just the answer", "answer only", "no explanation", "don't overthink",
             "do not overthink", "don't think", "no need to think", "briefly", "in one word"),
}  # fmt: skip
QUOTED = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`|^[ \t]*>[^\n]*$|\"[^\"]{0,20000}\"|“[^”]{0,20000}”|«[^»]{0,20000}»"
    r"|<(document|quote|context|file)\b[^>]*>.*?(?:</\1>|\Z)",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
NEGATED = re.compile(r"\b(?:not|never|don't|dont|no need to|without)\s+(?:\w+\s+)?$", re.IGNORECASE)
EDGE = 600  # characters at either end of a long text where a request stands; the middle is material


def intent(text: str, phrases: Mapping[str, Sequence[str]] = DEFAULT_INTENTS) -> str | None:
    """The intent a text states in so many words, or None; the last one where it states several.

    phrases: intent -> phrases, compared as whole words without regard to case. Code, quotations (marks, `>` lines,
    tags such as <document>) and the middle of a long text do not count, nor does a phrase with a negation before it.
    """
    own = QUOTED.sub(" ", text)
    own = own if len(own) <= 2 * EDGE else own[:EDGE] + " ... " + own[-EDGE:]
    own = own.replace("’", "'").lower()
    found: list[tuple[int, int, str]] = []
    for name, listed in phrases.items():
        for phrase in listed:
            for match in re.finditer(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", own):
                if not NEGATED.search(own[: match.start()]):
                    found.append((match.end(), len(phrase), name))
    return max(found)[2] if found else None
