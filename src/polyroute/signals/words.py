"""What the tokens of a text yield, through a memory of its words: most of a text is words that were met before.

Where no token of a byte-pair vocabulary holds two neighbouring characters, a text can be cut between them without
changing its tokens. In the vocabulary of Llama 2 that is so between letters and marks, before a space, at a line break,
and around each digit, ideograph and emoji. So each run of letters or of marks is split once and remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SPACE = "▁"  # how the vocabulary writes a space
ALONE = "\u2e80-\ufffc\U00010000-\U0010ffff"  # ideographs, emoji and the like
SEGMENTS = re.compile(rf"[\d\n{ALONE}]| *[^\W\d_²{ALONE}]+| *(?:[^\w \n{ALONE}]|[_²])+| +")
SHORT = 1_000  # bytes of a text that is looked up; a longer one goes to the tokeniser, which lets other threads run
LONGEST = 32  # characters of a segment worth remembering
MEMORY = 8_192  # segments remembered; about 10 MB where each yields 1 kB


class Words(Generic[T]):
    """Text -> what its tokens yield, in one piece for each segment, or in one for all. Safe to share between threads.

    tokenizer: a byte-pair `tokenizers.Tokenizer` that puts SPACE before a text and in place of each space, as those
    of the Llama 2 family do; no special tokens are added. Texts that are long, or contain SPACE or one of its added
    tokens, go through it whole. make: what a run of token ids yields.
    """

    def __init__(self, tokenizer: Any, make: Callable[[list[int]], T]):
        self.tokenizer, self.model, self.make = tokenizer, tokenizer.model, make
        self.whole = (SPACE, *(token.content for token in tokenizer.get_added_tokens_decoder().values()))
        self.memory: dict[str, T] = {}

    def __call__(self, text: str) -> list[T]:
        if not text:
            return []
        if not is_short(text):
            return [self.as_one(text)]
        for mark in self.whole:  # any() over these takes as long as the words
            if mark in text:
                return [self.as_one(text)]
        segments = SEGMENTS.findall(" " + text)
        known = self.memory.get
        return [self.learn(segment) if (made := known(segment)) is None else made for segment in segments]

    def as_one(self, text: str) -> T:
        """What a text yields that goes through the tokeniser whole."""
        return self.make(self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def learn(self, segment: str) -> T:
        """What one segment yields, remembered unless it is long."""
        made = self.make([token.id for token in self.model.tokenize(segment.replace(" ", SPACE))])
        if len(segment) <= LONGEST:
            if len(self.memory) >= MEMORY:
                self.memory.clear()  # one step, so other threads see a memory that is full or empty
            self.memory[segment] = made
        return made


def is_short(text: str) -> bool:
    """Is the text at most SHORT bytes long?"""
    return len(text) <= SHORT and (text.isascii() or len(text.encode("utf-8", "surrogatepass")) <= SHORT)
