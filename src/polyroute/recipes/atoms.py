"""System 92, OmniMoE: very many experts of one neuron, found by product keys, beside a dense network.

A token's K best of N atoms are found among 2 sqrt(N) scores, exactly; the atoms' work is done atom by atom, or by one
weighted sum over their table.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from polyroute.errors import ConfigError

if TYPE_CHECKING:
    from polyroute.nn.moe import MoE


def atoms(
    dim: int,
    num_atoms: int,
    *,
    k: int = 16,
    shared: int,
    batch_norm: bool = True,
    normalised: bool = True,
    act: str = "silu",
    out: int | None = None,
    **parts: Any,
) -> MoE:
    """A dense network of width `shared` plus k of `num_atoms` atoms, a square number (published: D 1024, N 4096, k 16).

    batch_norm: of both logit vectors without weights, the balancing device of the published code, which its text does
    not mention; see nn/scorers.ProductKeys about padding. normalised: gates sum to 1 as in the text; False takes
    exp(row + column) as in the code. parts: further arguments of MoE, as executor="grouped".
    """
    from polyroute.nn.atoms import AtomBank
    from polyroute.nn.gates import Raw, Renorm
    from polyroute.nn.moe import MoE
    from polyroute.nn.normalise import ProductLogSoftmax
    from polyroute.nn.scorers import ProductKeys
    from polyroute.nn.selection import ProductTopK

    side = math.isqrt(num_atoms)
    if side * side != num_atoms:
        raise ConfigError("num_atoms", got=num_atoms, expected="a square number, as 1024 = 32 x 32")
    return MoE(
        dim,
        1,
        num_atoms,
        scorer=ProductKeys(side, side, batch_norm),
        norm=ProductLogSoftmax(),
        select=ProductTopK(k),
        gate=Renorm() if normalised else Raw(),
        pool=AtomBank(dim, num_atoms, act=act, out=out),
        shared=shared,
        act="silu",
        out=out,
        **parts,
    )
