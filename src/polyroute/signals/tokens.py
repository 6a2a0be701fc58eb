"""How many tokens a prompt has, near enough for a price, without a vocabulary: from counts of kinds of bytes.

A tokeniser of the GPT-4 family spends about one token on a common word, one on three digits, one on two marks, and a
share of a token on each character of other scripts. docs/featurisers.md has the error on recorded counts.
"""

from __future__ import annotations

import re
from operator import mul

from polyroute.signals import surface

MARKS: tuple[str, ...] = (
    "stop", "comma", "question", "exclamation", "colon", "semicolon", "quote", "round", "square", "curly",
    "arithmetic", "relation", "dollar", "backslash", "underscore", "mark",
)  # fmt: skip
START = 0.7  # tokens of any text
# Tokens for each of what `counts_of` counts; a character's are beside those of the word it is in. Rounded from a fit to
# the train splits (`python -m benches.bench_signals --fit-tokens`): Latin text, code, mathematics and Chinese. For
# scripts that the tables lack, kana among them, what is commonly seen.
PER_COUNT: dict[str, float] = {
    "word": 1.05,
    "long_word": 0.16,
    "number": 1.38,
    "indent": 0.38,
    "upper": 0.2,
    "digit": 0.19,
    "newline": 1.1,
    "tab": 0.4,
    **dict.fromkeys(MARKS, 0.47),
    "latin": 0.38,
    "symbol": 1.7,
    "han": 1.22,
    "wide": 1.8,
    "kana": 1.1,
    "greek": 0.6,
    "cyrillic": 0.27,
    "right_to_left": 0.55,
    "indic": 1.0,
    "script": 0.8,
    "hangul": 1.0,
    "emoji": 2.5,
}
COUNTS: tuple[str, ...] = (*surface.KINDS, "word", "long_word", "number", "indent")
WEIGHTS = [PER_COUNT.get(name, 0.0) for name in COUNTS]
DIGIT = surface.KINDS.index("digit")

PER_MESSAGE = 6  # tokens that the JSON of a message counts more than a chat template adds
PER_ATTACHMENT = 800  # tokens of a picture or a sound: the middle of what providers charge
ATTACHMENT = 400  # characters from which encoded data counts as an attachment
READ = 8_192  # bytes; a longer text is read in BLOCKS pieces, evenly spread
BLOCKS = 16
ENCODED = (b";base64,", b'"data"')  # what stands before encoded data, a colon and a quote aside
ESCAPED = re.compile(rb'\\(u[0-9a-fA-F]{4}|[nrt"\\/])')
PLAIN = {b"n": b"\n", b"r": b"\n", b"t": b"\t", b'"': b'"', b"\\": b"\\", b"/": b"/"}


def count_tokens(prompt: object) -> int:
    """About how many tokens a prompt has. Never fails; 0 for nothing.

    prompt: a text, or JSON as it came on the wire (bytes or any buffer): the messages of a chat, or its tools. In JSON,
    encoded pictures and sounds count PER_ATTACHMENT each, whatever their size. Reads at most READ bytes.
    """
    if isinstance(prompt, str):
        return round(tokens_in(prompt.encode("utf-8", "surrogatepass")))
    try:
        data = bytes(memoryview(prompt))  # type: ignore[arg-type]  # whatever has no buffer has no tokens
    except TypeError:
        return 0
    data, attachments = without_attachments(data)
    messages = data.count(b'"role"')
    if b"\\" in data[:READ]:
        data = ESCAPED.sub(plain, data) if len(data) <= READ else data
    return max(round(tokens_in(data) - PER_MESSAGE * messages), messages) + PER_ATTACHMENT * attachments


def tokens_in(data: bytes) -> float:
    """Tokens of a text in UTF-8, from at most READ bytes of it."""
    if not data:
        return 0.0
    whole = len(data)
    if whole > READ:
        size, step = READ // BLOCKS, whole // BLOCKS
        data = b"".join(data[i * step : i * step + size] for i in range(BLOCKS))
    tokens: float = sum(map(mul, WEIGHTS, counts_of(data)))
    return tokens * whole / len(data) + START


def counts_of(data: bytes) -> list[int]:
    """How many there are of each of COUNTS in a text in UTF-8. A long word: nine letters without accent, or more."""
    counts = surface.kinds_of(data)
    roles = b"." + data.translate(surface.ROLE_OF)
    words = roles.translate(surface.WORD_OF)
    numbers = roles.translate(surface.NUMBER_OF).count(b"01") if counts[DIGIT] else 0
    return [*counts, words.count(b"01"), words.count(b"1" * 9), numbers, data.count(b"  ")]


def without_attachments(data: bytes) -> tuple[bytes, int]:
    """(JSON without its encoded data, how many pieces of it there were)."""
    attachments = 0
    for marker in ENCODED:
        pieces, position = [], 0
        while (start := data.find(marker, position)) >= 0:
            start += len(marker)
            if marker == ENCODED[1]:
                start = data.find(b'"', start) + 1 or len(data)
            end = data.find(b'"', start)
            end = len(data) if end < 0 else end
            large = end - start >= ATTACHMENT
            attachments += large
            pieces.append(data[position : start if large else end])
            position = end
        data = b"".join([*pieces, data[position:]]) if pieces else data
    return data, attachments


def plain(escape: re.Match[bytes]) -> bytes:
    """The character a JSON escape stands for; half of a surrogate pair as it is."""
    code = escape.group(1)
    return PLAIN[code] if code in PLAIN else chr(int(code[1:], 16)).encode("utf-8", "surrogatepass")
