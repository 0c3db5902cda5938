"""What edits of single blocks and of many cost: nothing where nothing is lost, by hand where something is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn.functional import cosine_similarity, cross_entropy

import lens
from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.edits import remove_blocks, replace_block, run_in_parallel, swap_blocks
from lens.probes.block_influence import block_influence
from lens.probes.depth_curves import block_rankings, closest_pairs, depth_curves
from lens.probes.depth_edits import KINDS, DepthEdit, EditedTexts, depth_edits, edits_of
from lens.probes.shortcuts import AffineMap
from tests.models.families import build
from tests.models.test_edits import traces

DOCUMENTS = [Document(" ".join(f"w{(7 * i + 11 * n * n) % 120}" for i in range(20))) for n in range(3)]


def affine(width: int, seed: int) -> AffineMap:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.eye(width) + 0.3 * torch.randn(width, width, generator=generator) / width**0.5
    return AffineMap(matrix, *(0.1 * torch.randn(2, width, generator=generator)))


@pytest.fixture(scope="module")
def model(tokenizer):
    return lens.load(build("llama"), tokenizer)


def test_every_number_by_hand(model):
    maps = {block: affine(model.d_model, block) for block in range(3)}
    before = traces(model)
    found = depth_edits(model, DOCUMENTS, KINDS, stand_ins=maps, tokens=12)
    assert traces(model) == before
    ids = model.encode_bare(DOCUMENTS[2].text)[:12]
    plain = model.run(ids)
    own = plain.logits[:-1].double().log_softmax(-1)
    contexts = {
        ("removed", 1): lambda: remove_blocks(model, [1]),
        ("swapped", 0): lambda: swap_blocks(model, 0, 1),
        ("parallel", 1): lambda: run_in_parallel(model, [1, 2]),
    }
    for (kind, block), edit in contexts.items():
        with edit():
            run = model.run(ids)
        said = run.logits[:-1].double().log_softmax(-1)
        here = found.sel(edit=kind, block=block).isel(document=2)
        assert float(here.loss_after) == pytest.approx(cross_entropy(said, torch.tensor(ids[1:])).item(), rel=1e-4)
        assert float(here.kl_to_original) == pytest.approx((own.exp() * (own - said)).sum(-1).mean().item(), rel=1e-3, abs=1e-4)
        assert float(here.agreement) == pytest.approx((said.argmax(-1) == own.argmax(-1)).double().mean().item())
        assert float(here.accuracy_after) == pytest.approx((said.argmax(-1) == torch.tensor(ids[1:])).double().mean().item())
        influence = 1 - cosine_similarity(run.residual[-1].double(), plain.residual[-1].double(), dim=-1).mean().item()
        assert float(here.influence_at_output) == pytest.approx(influence, abs=1e-6)
    assert np.isnan(found.loss_after.sel(edit=["swapped", "parallel"], block=2)).all()
    assert not np.isnan(found.loss_after.sel(edit=["removed", "replaced"])).any()
    assert np.allclose(found.loss.isel(document=2), cross_entropy(own, torch.tensor(ids[1:])).item(), rtol=1e-4)


def test_a_map_keeps_the_first_token_s_state(model):
    maps = {1: affine(model.d_model, 1)}
    ids = model.encode_bare(DOCUMENTS[0].text)[:12]
    plain = model.run(ids).residual

    def but_first(states):
        given = maps[1](states).clone()
        given[:, 0] = plain[2, 0]
        return given

    state = EditedTexts(model, [ids], maps).last_state([DepthEdit("replaced", (1,))])[0]
    with replace_block(model, 1, but_first):
        expected = model.run(ids).residual[-1]
    assert torch.allclose(state, expected, atol=1e-5)
    assert torch.allclose(state[0], plain[-1, 0], atol=1e-5)


def test_a_block_that_does_nothing_costs_nothing_whatever_is_done_to_it(tokenizer):
    module: Any = build("llama")
    with torch.no_grad():
        module.model.layers[1].self_attn.o_proj.weight.zero_()
        module.model.layers[1].mlp.down_proj.weight.zero_()
    model = lens.load(module, tokenizer)
    found = depth_edits(model, DOCUMENTS, ("removed", "swapped"), tokens=12)
    influence = block_influence(model, DOCUMENTS, tokens=12).block_influence.sel(block=1)
    removed = found.sel(edit="removed", block=1)
    assert abs(influence).max() < 1e-12
    assert (removed.loss_after == found.loss).all()
    assert (removed.kl_to_original == 0).all()
    assert abs(removed.influence_at_output).max() < 1e-12
    assert (removed.agreement == 1).all()
    assert found.kl_to_original.sel(edit="swapped", block=0).max() < 1e-6  # beside it, the order is all the same
    assert found.kl_to_original.sel(edit="removed", block=[0, 2]).min() > 1e-3


def test_the_map_that_a_block_is_costs_nothing(model):
    """On a model whose block 1 is affine, the map in its place changes nothing, and removing it does."""
    one = affine(model.d_model, 4)
    with replace_block(model, 1, one):
        found = depth_edits(model, DOCUMENTS, ("replaced", "removed"), stand_ins=dict.fromkeys(range(3), one), tokens=12)
    assert abs(found.loss_after.sel(edit="replaced", block=1) - found.loss).max() < 1e-5
    assert found.kl_to_original.sel(edit="replaced", block=1).max() < 1e-5
    assert found.kl_to_original.sel(edit="removed", block=1).min() > 1e-2


def test_no_edit_reproduces_the_model_bit_for_bit(model):
    ids = [model.encode_bare(one.text)[:12] for one in DOCUMENTS]
    read = EditedTexts(model, ids)
    state = read.last_state([])
    measures = read.measures([state])
    assert torch.equal(state, read.residual[-1])
    assert (measures["loss"][0] == measures["loss"][1]).all()
    assert (measures["kl"] == 0).all()
    assert (measures["agreement"] == 1).all()


# -- many at once -------------------------------------------------------------------------------------------------------


def test_curves_are_the_edits_all_at_once(model):
    curves = {
        "late": ("removed", [(2,), (1,), (0,)]),
        "maps": ("replaced", [(0,), (2,)]),
        "pair": ("parallel", [(1, 2)]),
    }
    maps = {block: affine(model.d_model, block) for block in range(3)}
    found = depth_curves(model, DOCUMENTS, curves, counts=(1, 2, 3), stand_ins=maps, tokens=12)
    singles = depth_edits(model, DOCUMENTS, KINDS, stand_ins=maps, tokens=12)
    for curve, kind, block in (("late", "removed", 2), ("maps", "replaced", 0), ("pair", "parallel", 1)):
        one = found.curve_loss.sel(curve=curve, edits_made=1)
        assert np.allclose(one, singles.loss_after.sel(edit=kind, block=block), rtol=1e-5)
    with remove_blocks(model, [0, 1, 2]):
        nothing = depth_edits(model, DOCUMENTS, ("removed",), tokens=12).loss
    assert np.allclose(found.curve_loss.sel(curve="late", edits_made=3), nothing, rtol=1e-4)
    assert np.isnan(found.curve_loss.sel(curve="maps", edits_made=3)).all()
    assert np.isnan(found.curve_loss.sel(curve="pair", edits_made=[2, 3])).all()
    assert found.order.to_numpy().tolist() == ["2, 1, 0", "0, 2", "1+2"]
    assert np.allclose(found.loss, singles.loss)


def planted(turns: list[float]) -> tuple[xr.Dataset, xr.Dataset]:
    blocks = len(turns)
    angles = np.full((2, blocks + 1, blocks + 1), np.nan)
    for block, turn in enumerate(turns):
        angles[:, block, block + 1] = turn
    influence = xr.Dataset(
        {
            "block_influence": (("document", "first_token", "block"), np.tile(turns, (2, 2, 1))),
            "angular_distance": (("document", "from_layer", "to_layer"), angles),
        },
        {"first_token": ["with", "without"]},
    )
    after = np.tile(turns[::-1], (1, 2, 1)).swapaxes(1, 2)
    edits = dict.fromkeys(("loss_after", "influence_at_output"), (("edit", "block", "document"), after))
    return influence, xr.Dataset(edits, {"edit": ["removed"]})


def test_rankings_take_the_cheapest_first():
    turns = [0.5, 0.1, 0.4, 0.2, 0.3]
    orders = block_rankings(*planted(turns), random=2)
    assert orders["block influence"] == (1, 3, 4, 2, 0)
    assert orders["loss when removed"] == orders["influence at output"] == (3, 1, 0, 2, 4)
    assert orders["last first"] == (3, 2, 1, 0, 4)
    drawn = orders["random 1"], orders["random 2"]
    assert [sorted(one) for one in drawn] == [list(range(5))] * 2
    assert drawn[0] != drawn[1]
    assert orders == block_rankings(*planted(turns), random=2)


def test_pairs_are_the_most_similar_neighbours_and_share_no_block():
    influence, _ = planted([0.5, 0.1, 0.2, 0.4, 0.3, 0.0])
    assert closest_pairs(influence, 2) == ((1, 2), (4, 5))
    with pytest.raises(InputError, match="3 pairs of 6 blocks"):
        closest_pairs(influence, 3)


# -- what is refused ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused(model):
    with pytest.raises(InputError, match="The edit is 'turned'"):
        edits_of("turned", 3)
    with pytest.raises(InputError, match="The edit is 'turned'"), DepthEdit("turned", (0,)).on(model, {}):
        pass
    with pytest.raises(InputError, match="Block 0 has no map"):
        depth_edits(model, DOCUMENTS, ("replaced",), tokens=12)
    with pytest.raises(InputError, match="No edit"):
        depth_edits(model, DOCUMENTS, (), tokens=12)
    with pytest.raises(InputError, match="0 curves"):
        depth_curves(model, DOCUMENTS, {}, tokens=12)
    with pytest.raises(InputError, match=r"counts \[0\]"):
        depth_curves(model, DOCUMENTS, {"one": ("removed", [(0,)])}, counts=(0,), tokens=12)
