"""What a text's words and pairs of words say beside its embedding: hashed, weighed by rarity, brought to few numbers.

Embeddings of meaning forget the wording, and wording tells tasks apart: the phrase that opens a question, a mark at the
end of a line. Letters: t tokens of all texts, h hash values, v tokens kept, r directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np

from polyroute.routers.rows import check_shape
from polyroute.types import Array, Rng

LIMIT = 4_000  # bytes read of a text
BITS = 17  # of a hash: few of the words kept share a value
KEPT = 16_000  # tokens kept, the most frequent
FREQUENT = 256  # of them, those that most texts have
FEWEST = 2  # texts a token must occur in
LEARNED_FROM = 4_000  # texts the directions are learned from
BLOCK = 32_768  # bytes of texts hashed at once, give or take a text
CHUNK = 256  # texts worked out at once: what is gathered stays in a core's cache

SPACE, WORD, MARK, LEAD, REST = range(5)  # LEAD, REST: first and later bytes of a character beyond ASCII


def _kind(byte: int) -> int:
    if byte >= 128:
        return REST if byte < 192 else LEAD
    character = chr(byte)
    return WORD if character.isalnum() or character == "_" else MARK if byte > 32 and byte != 127 else SPACE


KIND = np.array([_kind(byte) for byte in range(256)], dtype=np.uint8)
LOWER = np.arange(1, 257, dtype=np.uint64)  # what a byte counts as in a hash: 0 is for spaces
LOWER[65:91] += np.uint64(32)
LOWER[KIND == SPACE] = 0
ODD = 0x9E3779B97F4A7C15  # so that it has an inverse modulo 2**64
PAIR = (np.uint64(31), np.uint64(0x100000001B3))
SPREAD = np.uint64(0xD6E8FEB86659FD93)
HALF, TOP = np.uint64(32), np.uint64(64 - BITS)
BEGINS = bytes(int(kind not in (SPACE, REST)) for kind in KIND.tolist())  # 1 for the first byte of a character
IN_WORD = bytes(int(kind == WORD) for kind in KIND.tolist())


def _powers(base: int) -> Array:
    powers = np.full(BLOCK + LIMIT + 2, np.uint64(base % 2**64), dtype=np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


ONES = np.ones(2 * LIMIT, dtype=np.float32)
POWER, INVERSE = _powers(ODD), _powers(pow(ODD, -1, 2**64))


def hashed(text: str) -> Array:
    """A hash below 2**BITS for each word, mark and other character of a text, and for each pair of neighbours: [t] int.

    Upper case counts as lower case in ASCII. Reads LIMIT bytes; never fails (lone surrogates are question marks).
    """
    word, _ = _words(_bytes(text))
    w = len(word)
    code = np.empty(max(2 * w - 1, 0), dtype=np.uint64)
    code[:w] = word
    np.add(word[:-1] * PAIR[0], word[1:] * PAIR[1], out=code[w:])
    return _slots(code)


def hashed_all(texts: Sequence[str]) -> tuple[Array, Array]:
    """The hashes of several texts at once: ([t] int, [t] int which text each belongs to), in no order that matters.

    Texts should be of BLOCK bytes in all, the last beyond it at most.
    """
    parts = [_bytes(text) for text in texts]
    end = np.cumsum([len(part) + 1 for part in parts])
    word, first = _words(b" ".join(parts))
    count = np.diff(first.searchsorted(end), prepend=0)
    text = np.repeat(np.arange(len(texts)), count)
    same = text[1:] == text[:-1]
    both = (word[:-1] * PAIR[0] + word[1:] * PAIR[1])[same]
    return _slots(np.concatenate([word, both])), np.concatenate([text, text[1:][same]])


def _bytes(text: str) -> bytes:
    return text[:LIMIT].encode("utf-8", "replace")[:LIMIT]


def _words(raw: bytes) -> tuple[Array, Array]:
    """A hash of each word, mark and other character [w] uint64, and where each begins [w] int."""
    word = np.frombuffer(raw.translate(IN_WORD), np.uint8)
    start = np.frombuffer(raw.translate(BEGINS), np.uint8) > 0
    np.greater(start[1:], word[1:] & word[:-1], out=start[1:])
    first = start.nonzero()[0]
    if not len(first):
        return np.empty(0, dtype=np.uint64), first
    # A polynomial of the bytes up to each place; the difference of two, moved to power 0, is a hash of what is between.
    upto = np.zeros(len(raw) + 1, dtype=np.uint64)
    np.add.accumulate(LOWER.take(np.frombuffer(raw, np.uint8)) * POWER[: len(raw)], out=upto[1:])
    begin = upto.take(first)
    code = np.empty_like(begin)
    np.subtract(begin[1:], begin[:-1], out=code[:-1])
    np.subtract(upto[-1:], begin[-1:], out=code[-1:])
    code *= INVERSE.take(first)
    return code, first


def _slots(code: Array) -> Array:
    """Hashes below 2**BITS [t] int of codes [t] uint64."""
    mixed = code >> HALF
    mixed ^= code
    mixed *= SPREAD
    mixed >>= TOP
    return mixed.view(np.int64)


class Wording(NamedTuple):
    """From texts to [n, r]: each token's direction, summed over the distinct tokens, at the length they would have."""

    slot: Array  # [h] int32, the row of each hash value; v for those not kept
    table: Array  # [v + 1, r] float32, rarity times direction, the most frequent token first; the last row is 0
    rarity: Array  # [v + 1] float32; the last is 0
    centre: Array  # [r] float32, the mean of the texts learned from: a query without a text stands there

    def __call__(self, texts: Sequence[str]) -> Array:
        """[n, r] float32, centred; zeros for texts of which no token is known."""
        out = np.zeros((len(texts), self.table.shape[1]), dtype=np.float32)
        if not out.size:
            return out
        if len(texts) == 1:
            at = self.distinct(texts[0])
            if len(at):
                kept = self.rarity.take(at)
                np.matmul(ONES[: len(at)], self.table.take(at, axis=0), out=out[0])
                out[0] /= max(math.sqrt(kept @ kept), 1e-6)
                out[0] -= self.centre
            return out
        for begin, stop in _blocks(texts):
            self._sum(texts[begin:stop], out[begin:stop])
        return out

    def _sum(self, texts: Sequence[str], out: Array) -> None:
        """Work out several texts into out [n, r]: tokens that most texts have by one product, the rest text by text."""
        at, edge = self._distinct(texts)
        size = np.diff(edge)
        text = np.repeat(np.arange(len(texts)), size)
        hot = at < FREQUENT
        often = np.zeros((len(texts), min(FREQUENT, len(self.table))), dtype=np.float32)
        often[text[hot], at[hot]] = 1.0
        np.matmul(often, self.table[:FREQUENT], out=out)
        rare = at[~hot]
        end = np.cumsum(size - np.bincount(text[hot], minlength=len(texts))).tolist()
        begin, place = 0, np.empty((int(size.max(initial=0)), self.table.shape[1]), dtype=np.float32)
        for row, stop in zip(out, end, strict=True):
            if begin < stop:  # a text at a time, since what is gathered then stays in the cache
                gathered = place[: stop - begin]
                self.table.take(rare[begin:stop], axis=0, out=gathered, mode="clip")  # all inside; clip needs no copy
                row += ONES[: stop - begin] @ gathered
            begin = stop
        length = np.sqrt(np.bincount(text, self.rarity[at] ** 2, minlength=len(texts)))
        out /= np.maximum(length, 1e-6).astype(np.float32)[:, None]
        out[size > 0] -= self.centre

    def _distinct(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """The rows of known tokens of texts one after the other [k], and where each text's begin and end [n + 1]."""
        code, text = hashed_all(texts)
        row, num_rows = self.slot[code], len(self.rarity)
        known = np.flatnonzero(row < num_rows - 1)
        key = (text[known] * num_rows + row[known]).astype(np.int32)  # a block's texts times KEPT is far below 2**31
        key.sort()
        key = key[np.flatnonzero(np.diff(key, prepend=np.int32(-1)))]
        return key % num_rows, key.searchsorted((num_rows * np.arange(len(texts) + 1)).astype(np.int32))

    def distinct(self, text: str) -> Array:
        """The rows of a text's known tokens, each once."""
        at = self.slot.take(hashed(text))
        at.sort()
        at = at[: int(at.searchsorted(len(self.rarity) - 1))]
        new = np.empty(len(at), dtype=bool)
        new[:1] = True
        np.not_equal(at[1:], at[:-1], out=new[1:])
        return at[new]

    @classmethod
    def of(cls, slot: Array, table: Array, rarity: Array, centre: Array) -> Self:
        """From saved arrays. Raises: ShapeError."""
        table = check_shape("table", np.asarray(table, np.float32), (None, None))
        rarity = check_shape("rarity", np.asarray(rarity, np.float32), (len(table),))
        centre = check_shape("centre", np.asarray(centre, np.float32), (table.shape[1],))
        slot = check_shape("slot", np.asarray(slot, np.int32), (1 << BITS,))
        if slot.min() < 0 or slot.max() >= len(table):
            raise ValueError(f"slot: expected rows of the table, 0 to {len(table) - 1}, got {slot.min()}..{slot.max()}")
        return cls(slot, table, rarity, centre)


def _blocks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Runs of texts of about BLOCK bytes."""
    begin = size = 0
    for i, text in enumerate(texts):
        size += 1 + min(len(text) if text.isascii() else 4 * len(text), LIMIT)
        if size > BLOCK:
            yield begin, i + 1
            begin, size = i + 1, 0
    if begin < len(texts):
        yield begin, len(texts)


def learn_wording(texts: Sequence[str], rng: Rng, num_directions: int = 128, steps: int = 3) -> Wording:
    """The directions in which texts differ most by their words, rare ones counting more.

    No labels and no outcomes enter. Fewer directions than asked where there are few texts; none without texts.
    Source: latent semantic analysis, Deerwester et al. 1990; randomised, Halko, Martinsson and Tropp 2011.
    """
    tokens = [np.unique(hashed(text)) for text in texts]
    count = np.bincount(np.concatenate([*tokens, np.empty(0, np.intp)]), minlength=1 << BITS)
    kept = np.flatnonzero(count >= FEWEST)
    kept = kept[np.argsort(-count[kept], kind="stable")[:KEPT]]
    rarity = np.append(np.log((1 + len(texts)) / (1 + count[kept])), 0.0).astype(np.float32)
    slot = np.full(1 << BITS, len(kept), dtype=np.int32)
    slot[kept] = np.arange(len(kept))
    chosen = [tokens[i] for i in np.sort(rng.permutation(len(texts))[:LEARNED_FROM])]
    r = min(num_directions, len(chosen) // 4, len(kept) // 2)
    if r < 1:
        return Wording(slot, np.zeros((len(kept) + 1, 0), np.float32), rarity, np.zeros(0, np.float32))
    directions = _directions([row[row < len(kept)] for row in (slot[t] for t in chosen)], rarity, r, rng, steps)
    wording = Wording(slot, directions * rarity[:, None], rarity, np.zeros(r, np.float32))
    some = [text for text in texts if text][:LEARNED_FROM]
    return wording._replace(centre=wording(some).mean(axis=0) if some else wording.centre)


def _directions(rows: Sequence[Array], rarity: Array, r: int, rng: Rng, steps: int) -> Array:
    """[v + 1, r] leading right singular vectors of the matrix whose rows are texts, by subspace iteration."""
    length = np.array([len(row) for row in rows])
    rows = [row for row, some in zip(rows, length, strict=True) if some]
    length = length[length > 0]
    column = np.concatenate(rows)
    text = np.repeat(np.arange(len(rows)), length)
    value = rarity[column]
    value = value / np.sqrt(np.bincount(text, value**2))[text]
    order = np.argsort(column, kind="stable")
    present, start = np.unique(column[order], return_index=True)
    by_column, value_by_column = text[order], value[order].astype(np.float32)
    begin, value = np.concatenate([[0], np.cumsum(length)[:-1]]), value.astype(np.float32)
    wide = r + 16

    def down(q: Array) -> Array:  # texts -> tokens present
        return _sums(q, by_column, value_by_column, start)

    def up(z: Array) -> Array:  # tokens present -> texts
        return _sums(z, place[column], value, begin)

    place = np.zeros(len(rarity), dtype=np.intp)
    place[present] = np.arange(len(present))
    q = np.linalg.qr(rng.normal(size=(len(rows), wide)).astype(np.float32))[0]
    for _ in range(steps):
        q = np.linalg.qr(up(down(q)))[0]
    small = down(q)  # [present, wide]: the transpose of q' times the matrix
    strength, turn = np.linalg.eigh((small.T @ small).astype(float))
    best = np.argsort(-strength)[:r]
    found = np.zeros((len(rarity), len(best)), dtype=np.float32)
    found[present] = small @ (turn[:, best] / np.sqrt(np.maximum(strength[best], 1e-12))).astype(np.float32)
    return found


def _sums(dense: Array, at: Array, value: Array, start: Array) -> Array:
    """Sums of value * dense[at] over the runs that begin at `start`, some runs at a time."""
    out = np.empty((len(start), dense.shape[1]), dtype=np.float32)
    end = np.append(start[1:], len(at))
    step = CHUNK
    for i in range(0, len(start), step):
        a, b = start[i], end[min(i + step, len(start)) - 1]
        out[i : i + step] = np.add.reduceat(dense[at[a:b]] * value[a:b, None], start[i : i + step] - a, axis=0)
    return out
