"""Character n-grams of a text as bucket numbers: no vocabulary, any script, some tens of microseconds."""

from __future__ import annotations

import numpy as np

from polyroute.types import Array

SIZES = (2, 3, 4, 5)  # bytes of UTF-8 in an n-gram
MOST = 4_000  # characters read of a text: its head and its tail
MULTIPLIER, MIXER = np.uint64(1099511628211), np.uint64(0xBF58476D1CE4E5B9)  # of FNV-1a and of splitmix64


def ngrams(text: str, buckets: int, sizes: tuple[int, ...] = SIZES) -> Array:
    """[g] int64 in 0..buckets: one bucket for each n-gram of the lower-cased text, repeats kept. Never fails.

    buckets: a power of two. The text is put between two control characters, so that its ends count as well.
    """
    if len(text) > MOST:
        text = text[: MOST // 2] + text[-MOST // 2 :]
    codes = np.frombuffer(f"\x02{text.lower()}\x03".encode("utf-8", "surrogatepass"), np.uint8).astype(np.uint64)
    found = []
    for size in sizes:
        count = len(codes) - size + 1
        if count < 1:
            continue
        mixed = np.full(count, size, dtype=np.uint64)
        for offset in range(size):
            mixed = mixed * MULTIPLIER + codes[offset : offset + count]
        mixed ^= mixed >> np.uint64(29)
        mixed *= MIXER
        mixed ^= mixed >> np.uint64(32)
        found.append((mixed & np.uint64(buckets - 1)).astype(np.int64))
    return np.concatenate(found) if found else np.empty(0, np.int64)
