"""The embedded featuriser: the mean of learned token vectors, beside what the text looks like.

No network, no torch, no transformer: a text is split into tokens and their rows of a table are averaged. The table
(32,000 x 256, float16) is mapped from the installed wordllama package and never copied, so several processes share
its 16 MB and only rows that occur are read.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyroute.errors import MissingExtraError, ModelFileError
from polyroute.signals import surface
from polyroute.signals.conversation import sample
from polyroute.signals.embed import package_file
from polyroute.signals.words import Words, is_short
from polyroute.types import Array

WEIGHTS = "weights/l2_supercat_256.safetensors"
TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
TENSOR = "embedding.weight"
HEADER = 1 << 20  # bytes; a longer header is no header
MAX_CHARACTERS = 4_000  # a longer text is sampled: head, middle and tail
ROWS = 128  # rows converted at a time: 128 kB, which stays in a core's cache
ONES = np.ones(ROWS, dtype=np.float32)

# Where the surface features lie on average: llmrouter9 and a third of routellm, train split, as printed by
# `python -m benches.bench_features --centre`. Names not listed: 0.
CENTRE: dict[str, float] = {
    "share_lower": 0.85, "share_upper": 0.16, "share_digit": 0.07, "share_space": 0.4, "share_newline": 0.07,
    "share_stop": 0.1, "share_comma": 0.06, "share_question": 0.05, "share_colon": 0.03, "share_quote": 0.02,
    "share_round": 0.02, "share_curly": 0.01, "share_arithmetic": 0.03, "share_relation": 0.01, "share_dollar":
    0.01, "share_backslash": 0.01, "share_underscore": 0.01, "length_20": 0.04, "length_60": 0.24, "length_180":
    0.38, "length_540": 0.23, "length_1620": 0.1, "length_4860": 0.01, "lines": 0.33, "line_length": 0.73,
    "paragraphs": 0.02, "indented_lines": 0.02, "options": 0.3, "words": 0.57, "word_length": 0.48,
    "longest_word": 0.3, "numbers": 0.2, "digits_per_number": 0.24, "sentences": 0.45, "questions": 0.27,
    "capitalised": 0.4, "capitalised_share": 0.13, "distinct_words": 0.82, "latex": 0.02, "calls": 0.02,
    "blanks": 0.02, "comments": 0.01, "assignments": 0.02, "spaced_operators": 0.03, "ends_question": 0.3,
    "ends_stop": 0.12, "ends_colon": 0.42, "ends_word": 0.11, "ends_bracket": 0.03, "starts_upper": 0.9,
    "starts_lower": 0.09, "starts_symbol": 0.01,
}  # fmt: skip
SPREAD = 1.246  # root mean square distance from CENTRE there, weighted
SURFACE_NORM = 0.7  # of the surface block, where the token block has 1
UNIT = float(1 / np.hypot(1.0, SURFACE_NORM))  # brings both together to about length 1


class Static:
    """Vectors of 256 token dimensions and the surface features, about unit length, fit for cosines and linear heads.

    The same text gives the same vector, alone or in a batch. Lone surrogates count as question marks. A text that
    `is_quick` takes well under a millisecond; most of the time of a longer one is spent without the interpreter's lock.
    Source: WordLlama (github.com/dleemiller/WordLlama), whose own unit vectors are the first 256 dimensions but for
    one factor; texts beyond MAX_CHARACTERS are sampled here.
    """

    name = "static-1"
    dim = 256 + surface.DIM
    is_quick = staticmethod(is_short)

    def __init__(self, folder: Path | None = None):
        """folder: an unpacked wordllama package; None: the installed one. Raises: MissingExtraError, ModelFileError."""
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise MissingExtraError("tokenizers", "embed") from None
        files = [package_file("wordllama", f, "embed") if folder is None else folder / f for f in (WEIGHTS, TOKENIZER)]
        self.bits = half_table(files[0], TENSOR)
        self.words = Words(Tokenizer.from_file(str(files[1])), self.sum_of)
        self.surface = SurfaceBlock(SURFACE_NORM * UNIT)

    def __call__(self, texts: Sequence[str]) -> Array:
        """[n, dim] float32."""
        out = np.empty((len(texts), self.dim), dtype=np.float32)
        texts = [writable(sample(text, MAX_CHARACTERS)) for text in texts]
        for row, text in zip(out, texts, strict=True):
            sums = np.frombuffer(b"".join(self.words(text)), dtype=np.float32).reshape(-1, 256)
            total = np.add.reduce(sums, axis=0)
            np.multiply(total, UNIT / (math.sqrt(total @ total) or 1.0), out=row[:256])
        out[:, 256:] = self.surface(texts)
        return out

    def sum_of(self, tokens: list[int]) -> bytes:
        """The sum of the tokens' vectors, [256] float32, as bytes: those of many words are joined in one step."""
        total: bytes = sum_rows(self.bits, np.array(tokens, dtype=np.intp)).tobytes()
        return total


class SurfaceBlock:
    """Surface features centred and scaled to stand beside a unit vector: [n, surface.DIM], about `norm` long.

    Shares of characters vary little and count double; the first and the last character vary a lot and count half.
    """

    def __init__(self, norm: float = SURFACE_NORM) -> None:
        self.centre = np.array([CENTRE.get(name, 0.0) for name in surface.NAMES], dtype=np.float32)
        weight = np.array([surface_weight(name) for name in surface.NAMES], dtype=np.float32)
        self.scale = weight * np.float32(norm / SPREAD)

    def __call__(self, texts: Sequence[str]) -> Array:
        rows = [array("f", surface.features(sample(text, MAX_CHARACTERS))) for text in texts]
        features = np.frombuffer(b"".join(rows), dtype=np.float32).reshape(len(texts), surface.DIM)
        return (features - self.centre) * self.scale


def writable(text: str) -> str:
    """The text with lone surrogates, which have no UTF-8 form, as question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def surface_weight(name: str) -> float:
    return 2.0 if name.startswith("share_") else 0.5 if name.startswith(("starts_", "ends_")) else 1.0


def half_table(file: Path, tensor: str) -> Array:
    """The bits of a float16 matrix [rows, d] in a safetensors file, mapped as int16 and not read.

    Raises: ModelFileError where the file is not safetensors or the tensor is not such a matrix.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            entry = json.loads(opened.read(min(length, HEADER)))[tensor]
        rows, width = entry["shape"]
        if entry["dtype"] != "F16":
            raise ModelFileError(f"{file}: expected {tensor} in F16, got {entry['dtype']}.")
        start = 8 + length + entry["data_offsets"][0]
        return np.asarray(np.memmap(file, dtype="<i2", mode="r", offset=start, shape=(rows, width)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{file}: expected a safetensors file with a matrix {tensor}, got {error!r}.") from error


def sum_rows(bits: Array, rows: Array) -> Array:
    """[d] float32: the exact float16 rows of a table, summed. bits: [r, d] int16. rows: [k] int, repeats count again.

    numpy converts float16 one by one, which would be most of the time of a text. Shifting the bits into a float32's
    places leaves the exponent 112 too small for every value alike, so one factor at the end puts the sum right
    (infinities and NaN, which no weights have, aside).
    """
    total = np.zeros(bits.shape[1], dtype=np.float32)
    for start in range(0, len(rows), ROWS):
        wide = bits.take(rows[start : start + ROWS], axis=0).astype(np.int32)  # [<= ROWS, d]
        np.left_shift(wide, 13, out=wide)
        np.bitwise_and(wide, np.int32(-0x70002000), out=wide)  # sign, 5 exponent and 10 fraction bits: 0x8fffe000
        total += ONES[: len(wide)] @ wide.view(np.float32)
    return total * np.float32(2.0**112)
