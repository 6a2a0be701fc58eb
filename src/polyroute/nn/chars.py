"""Text of four domains, made by small grammars: arithmetic lines, nested brackets, plain English, key=value code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from polyroute.errors import ConfigError
from polyroute.nn.corpora import Batch, draw_domains

DOMAINS = ("arithmetic", "brackets", "english", "code")
ALPHABET = '\n abcdefghijklmnopqrstuvwxyz0123456789+-*=()[]{}<>.,"_'


def _words(text: str, between: str = " ") -> list[str]:
    return text.split(between)


NOUNS = _words("cat dog bird child farmer teacher river road garden house ship letter book lamp stone tree king friend")
ADJECTIVES = _words("old young small green quiet bright heavy kind strange tired clever cold")
VERBS = _words("sees finds follows carries remembers paints leaves watches calls forgets loves moves")
PLACES = _words("near the bridge,in the town,under the moon,by the sea,at the market,behind the hill", ",")
KEYS = _words("size width height count limit depth rate port name path mode color user level")
WORDS = _words("red blue fast slow main test home data alpha beta left right on off")
PAIRS = ("()", "[]", "{}", "<>")


def arithmetic(rng: np.random.Generator) -> str:
    """A line such as 17+25=42."""
    a, b = (int(v) for v in rng.integers(100, size=2))
    sign = "+++---*"[rng.integers(7)]
    if sign == "*":
        a, b = a % 10, b % 10
    if sign == "-" and b > a:
        a, b = b, a
    return f"{a}{sign}{b}={ {'+': a + b, '-': a - b, '*': a * b}[sign] }\n"


def brackets(rng: np.random.Generator) -> str:
    """A balanced line of four kinds of brackets, at most 8 deep."""
    out, open_ = [], []
    for opens, kind in zip(rng.random(int(rng.integers(8, 25))) < 0.55, rng.integers(4, size=25), strict=False):
        if (opens and len(open_) < 8) or not open_:
            out.append(PAIRS[kind][0])
            open_.append(PAIRS[kind][1])
        else:
            out.append(open_.pop())
    return "".join(out + open_[::-1]) + "\n"


def english(rng: np.random.Generator) -> str:
    """A sentence from a template."""
    n, a = rng.integers(len(NOUNS), size=2), rng.integers(len(ADJECTIVES), size=2)
    verb, place = VERBS[rng.integers(len(VERBS))], PLACES[rng.integers(len(PLACES))]
    first, second = f"the {ADJECTIVES[a[0]]} {NOUNS[n[0]]}", f"the {ADJECTIVES[a[1]]} {NOUNS[n[1]]}"
    form = rng.integers(3)
    if form == 0:
        return f"{first} {verb} {second}.\n"
    return f"{first} {verb} {second} {place}.\n" if form == 1 else f"{place}, {first} {verb} {second}.\n"


def code(rng: np.random.Generator) -> str:
    """Two settings, and a print of the first."""
    i = int(rng.integers(len(KEYS)))
    j = (i + int(rng.integers(1, len(KEYS)))) % len(KEYS)
    first = f"{KEYS[i]}_{'ab'[rng.integers(2)]}"
    word = WORDS[rng.integers(len(WORDS))]
    return f'{first}={rng.integers(1000)}\n{KEYS[j]}="{word}"\nprint({first})\n'


GRAMMARS: tuple[Callable[[np.random.Generator], str], ...] = (arithmetic, brackets, english, code)


def encode(text: str) -> Tensor:
    """Ids [L] int64 of a text. Raises: ConfigError for a character outside ALPHABET."""
    if unknown := sorted(set(text) - set(ALPHABET)):
        raise ConfigError("text", got="".join(unknown), expected=f"characters of {ALPHABET!r}")
    return torch.tensor([ALPHABET.index(c) for c in text], dtype=torch.int64)


def decode(ids_L: Tensor) -> str:
    """The text of ids [L]."""
    return "".join(ALPHABET[i] for i in ids_L.tolist())


class Chars:
    """Windows of generated text, one domain a sequence; the target of each character is the next one.

    length: L characters of a sequence. domains: which of DOMAINS, in this order. mixture: share of each. size:
    characters of text for each domain; drawing a batch is then one look-up. held_out: text the other has not seen,
    from the same grammars (`Chars(seed=0)` trains, `Chars(seed=0, held_out=True)` judges).
    """

    vocab = len(ALPHABET)

    def __init__(
        self, length: int = 64, *, domains: Sequence[str] = DOMAINS, mixture: Sequence[float] | None = None,
        size: int = 40_000, held_out: bool = False, seed: int = 0,
    ):  # fmt: skip
        if unknown := [name for name in domains if name not in DOMAINS] or not domains:
            raise ConfigError("domains", got=unknown, expected=f"some of {', '.join(DOMAINS)}")
        if not 1 <= length < size:
            raise ConfigError("length", got=length, expected=f"1 to {size - 1}, less than the text's size")
        self.length, self.domains, self.mixture = length, tuple(domains), mixture
        self.num_domains = len(self.domains)
        self.text_CN = torch.stack([self._text(name, size, seed, held_out) for name in self.domains])

    @staticmethod
    def _text(name: str, size: int, seed: int, held_out: bool) -> Tensor:
        domain = DOMAINS.index(name)
        rng = np.random.default_rng([seed, domain, held_out])
        lines, total = [], 0
        while total < size:
            lines.append(GRAMMARS[domain](rng))
            total += len(lines[-1])
        table = np.zeros(128, dtype=np.int64)
        table[[ord(c) for c in ALPHABET]] = np.arange(len(ALPHABET))
        return torch.from_numpy(table[np.frombuffer("".join(lines)[:size].encode("ascii"), dtype=np.uint8)])

    def batch(self, rng: np.random.Generator, num_sequences: int, *, domain: int | None = None) -> Batch:
        domain_B = torch.from_numpy(draw_domains(rng, num_sequences, self.num_domains, self.mixture, domain))
        start_B = torch.from_numpy(rng.integers(self.text_CN.shape[1] - self.length, size=num_sequences))
        window_BL = self.text_CN[domain_B[:, None], start_B[:, None] + torch.arange(self.length + 1)]
        return Batch(window_BL[:, :-1].contiguous(), window_BL[:, 1:].contiguous(), domain_B)
