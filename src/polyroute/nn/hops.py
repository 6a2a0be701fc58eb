"""Look-ups in a row: entities, a table that names another one for each, and a stack in which a layer does one look-up.

What a table says can only be learned by heart. Layers that are asked for the same table need the same knowledge; with
experts of their own each of them has to store it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.corpora import Batch
from polyroute.nn.transformer import Block, FeedForwardOf


class LookUps:
    """N entities and a table of them for each hop, a permutation: hop h + 1 looks up what hop h has answered.

    key_ND: length sqrt(D) each, clusters of entities around random centres (`spread`: std of the centres over the std
    within a cluster). common: share of the clusters for whose entities all tables say the same; for the others each
    table has answers of its own. answer_HN: entity after each hop.
    """

    def __init__(
        self, entities: int = 256, dim: int = 16, *, hops: int = 2, common: float = 1.0,
        clusters: int = 16, spread: float = 1.0, seed: int = 0,
    ):  # fmt: skip
        if min(entities, dim, hops, clusters) < 1:
            got = (entities, dim, hops, clusters)
            raise ConfigError("entities, dim, hops, clusters", got=got, expected="1 and more each")
        if not 0.0 <= common <= 1.0:
            raise ConfigError("common", got=common, expected="a share, 0 to 1")
        rng = np.random.default_rng(seed)
        centre_CD = spread * rng.normal(size=(clusters, dim))
        key_ND = centre_CD[np.arange(entities) % clusters] + rng.normal(size=(entities, dim))
        key_ND *= dim**0.5 / np.linalg.norm(key_ND, axis=1, keepdims=True)
        table_N = rng.permutation(entities)
        own = np.flatnonzero(np.arange(entities) % clusters >= round(common * clusters))
        answers = [table_N]
        for _ in range(1, hops):
            table_N = table_N.copy()
            table_N[own] = rng.permutation(table_N[own])
            answers.append(table_N[answers[-1]])
        self.key_ND = torch.from_numpy(key_ND.astype(np.float32))
        self.answer_HN = torch.from_numpy(np.stack(answers))

    def everything(self) -> Batch:
        """Every entity once, as one sequence: x [1, N, D], y [1, N, H] ids."""
        return Batch(self.key_ND[None], self.answer_HN.T[None], torch.zeros(1, dtype=torch.int64))


class Hops(nn.Module):
    """A block without attention for each hop. Between blocks the answer is said: the next one reads an entity's key.

    ffn: layer -> module. Scores are cosines with the keys times a learned scale.
    """

    def __init__(self, key_ND: Tensor, hops: int, ffn: FeedForwardOf):
        super().__init__()
        self.register_buffer("key_ND", key_ND)
        self.blocks = nn.ModuleList(Block(key_ND.shape[1], 0, ffn(layer), layer) for layer in range(hops))
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, x_BLD: Tensor, said_BLH: Tensor | None = None) -> Tensor:
        """Scores of each entity after each hop [B, L, H, N].

        said_BLH: what the blocks after the first are told that the one before said (its right answers, in training);
        None: what it said, the likeliest entity. Raises: ShapeError.
        """
        expected = (*x_BLD.shape[:2], len(self.blocks))
        if said_BLH is not None and said_BLH.shape != expected:
            raise ShapeError("said", got=tuple(said_BLH.shape), expected=expected)
        scores, unit_ND = list[Tensor](), F.normalize(self.key_ND, dim=-1)
        for hop, block in enumerate(self.blocks):
            if hop:
                x_BLD = self.key_ND[scores[-1].argmax(-1) if said_BLH is None else said_BLH[..., hop - 1]]
            stream_BLD, _ = block(x_BLD, None, None, None, False)
            scores.append(self.scale * F.normalize(stream_BLD, dim=-1) @ unit_ND.T)
        return torch.stack(scores, dim=2)


def hops_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of all hops, nats, each told the right answer of the one before. For `train(loss=...)`."""
    return F.cross_entropy(model(batch.x, batch.y).flatten(0, 2), batch.y.flatten())
