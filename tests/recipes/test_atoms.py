"""The layer of system 92, against its formula written out, and the growth of its router's arithmetic."""

from __future__ import annotations

import pytest

from polyroute.errors import ConfigError
from polyroute.proofs.atoms import SIZES, routers, same_atoms, slope, unevenness
from polyroute.recipes.atoms import atoms

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.mark.parametrize("normalised", [True, False])
def test_the_layer_is_the_formula(normalised):
    torch.manual_seed(0)
    layer = atoms(8, 25, k=3, shared=6, normalised=normalised, batch_norm=False)
    x = torch.randn(11, 8)
    with torch.no_grad():
        scorer, bank = layer.router.scorer, layer.pool
        row = (x @ scorer.row.weight.T).log_softmax(-1)
        column = (x @ scorer.column.weight.T).log_softmax(-1)
        best = (row[:, :, None] + column[:, None, :]).flatten(1).topk(3)
        gate = best.values.exp()
        gate = gate / gate.sum(-1, keepdim=True) if normalised else gate
        hidden = torch.nn.functional.silu((x[:, None] * bank.w_ND[best.indices]).sum(-1))
        expected = ((gate * hidden)[..., None] * bank.v_NO[best.indices]).sum(1) + layer.shared(x)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_arithmetic_of_the_router_grows_as_the_square_root():
    from torch.utils.flop_counter import FlopCounterMode

    from polyroute.nn.routing import TokenContext

    counted = {"product keys": [], "scan of all": []}
    with torch.no_grad():
        for size in SIZES:
            for name, router in routers(size).items() if size <= 1024 else list(routers(size).items())[:1]:
                with FlopCounterMode(display=False) as counter:
                    router(TokenContext(torch.randn(4, 256), (1, 4)))
                counted[name].append(counter.get_total_flops())
    assert slope(counted["product keys"]) == pytest.approx(0.5)
    assert counted["scan of all"][1] == 4 * counted["scan of all"][0]


def test_selection_is_that_of_a_scan():
    assert same_atoms(3) == 1.0


def test_even_use_has_no_unevenness_and_one_atom_all_of_it():
    assert unevenness(torch.full((8,), 5)) == (1.0, pytest.approx(0.0))
    usage, divergence = unevenness(torch.tensor([9, 0, 0, 0]))
    assert usage == 0.25
    assert divergence == pytest.approx(1.3862943611)


def test_atoms_must_form_a_square():
    with pytest.raises(ConfigError, match="square"):
        atoms(8, 24, shared=4)
