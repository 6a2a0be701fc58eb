"""Expert layers of Hugging Face transformers models: read, swapped in place, tapped, and written back.

Blocks of Mixtral, OLMoE, Qwen2-MoE, Qwen3-MoE, DeepSeek-V2 and DeepSeek-V3 as transformers 5 holds them: one tensor of
all experts for each matrix. Only `load_model` needs transformers itself.
"""

from polyroute.nn.hf.blocks import FAMILIES, blocks, convert, feed_forward, write_back
from polyroute.nn.hf.files import load_experts
from polyroute.nn.hf.live import install, installed, load_model, restore, tap

__all__ = [
    "FAMILIES", "blocks", "convert", "feed_forward", "install", "installed", "load_experts", "load_model", "restore",
    "tap", "write_back",
]  # fmt: skip
