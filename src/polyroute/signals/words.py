"""Token ids of a text through a memory of its words: the tokeniser's own answer in a third of the time or less.

Where no token of a byte-pair vocabulary holds two neighbouring characters, a text can be cut between them without
changing its tokens. In the vocabulary of Llama 2 that is so between letters and marks, before a space, at a line break,
and around each digit, ideograph and emoji. So each run of letters or of marks is split once and remembered.
"""

from __future__ import annotations

import re
from typing import Any

SPACE = "▁"  # how the vocabulary writes a space
ALONE = "\u2e80-\ufffc\U00010000-\U0010ffff"  # ideographs, emoji and the like
SEGMENTS = re.compile(rf"[\d\n{ALONE}]| *[^\W\d_²{ALONE}]+| *(?:[^\w \n{ALONE}]|[_²])+| +")
SHORT = 1_000  # bytes of a text that is looked up; a longer one goes to the tokeniser, which lets other threads run
LONGEST = 32  # characters of a segment worth remembering
MEMORY = 16_384  # segments remembered; about 4 MB


class WordTokens:
    """Text -> token ids, equal to the tokeniser's without special tokens. Safe to share between threads.

    tokenizer: a byte-pair `tokenizers.Tokenizer` that puts SPACE before a text and in place of each space, as those
    of the Llama 2 family do. Texts that are long, or contain SPACE or one of its added tokens, go through it whole.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.model = tokenizer, tokenizer.model
        self.whole = (SPACE, *(token.content for token in tokenizer.get_added_tokens_decoder().values()))
        self.memory: dict[str, tuple[int, ...]] = {}

    def __call__(self, text: str) -> list[int]:
        if not text:
            return []
        if not is_short(text) or any(mark in text for mark in self.whole):
            ids: list[int] = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
            return ids
        found: list[int] = []
        known = self.memory.get
        for segment in SEGMENTS.findall(" " + text):
            tokens = known(segment)
            found += self.learn(segment) if tokens is None else tokens
        return found

    def learn(self, segment: str) -> tuple[int, ...]:
        """Tokens of one segment, remembered unless it is long."""
        tokens = tuple(token.id for token in self.model.tokenize(segment.replace(" ", SPACE)))
        if len(segment) <= LONGEST:
            if len(self.memory) >= MEMORY:
                self.memory.clear()  # one step, so other threads see a memory that is full or empty
            self.memory[segment] = tokens
        return tokens


def is_short(text: str) -> bool:
    """Is the text at most SHORT bytes long?"""
    return len(text) <= SHORT and (text.isascii() or len(text.encode("utf-8", "surrogatepass")) <= SHORT)
