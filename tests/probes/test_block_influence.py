"""Block influence: exact on blocks that are known, within its bounds, and blind to scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.edits import change_states, remove_blocks, replace_block
from lens.probes.block_influence import block_influence, closest_span
from tests.models.families import build

DOCUMENTS = [Document(" ".join(f"w{(7 * i + 11 * n) % 120}" for i in range(20))) for n in range(3)]


@pytest.fixture(scope="module")
def model(tokenizer):
    return lens.load(build("llama"), tokenizer)


def measured(model) -> xr.Dataset:
    return block_influence(model, DOCUMENTS, tokens=12)


def test_every_number_by_hand(model):
    found = measured(model)
    assert found.sizes == {"document": 3, "first_token": 2, "block": 3, "from_layer": 4, "to_layer": 4}
    residual = model.run(model.encode_bare(DOCUMENTS[1].text)[:12]).residual.double()
    for block in range(3):
        one, two = residual[block], residual[block + 1]
        cosine = ((one * two).sum(-1) / one.norm(dim=-1) / two.norm(dim=-1)).numpy()
        here = found.isel(document=1, block=block)
        assert float(here.block_influence.sel(first_token="with")) == pytest.approx(1 - cosine.mean(), abs=1e-6)
        assert float(here.block_influence.sel(first_token="without")) == pytest.approx(1 - cosine[1:].mean(), abs=1e-6)
        ratio = ((two - one).norm(dim=-1) / two.norm(dim=-1)).numpy()
        assert float(here.update_ratio.sel(first_token="with")) == pytest.approx(ratio.mean(), rel=1e-6)
        angles = np.arccos(cosine) / np.pi
        distance = found.isel(document=1).sel(from_layer=block, to_layer=block + 1)
        assert float(distance.angular_distance) == pytest.approx(angles[1:].mean(), abs=1e-6)
        assert float(distance.last_angular_distance) == pytest.approx(angles[-1], abs=1e-6)
    first, last = residual[0, -1], residual[3, -1]
    whole = found.last_angular_distance.isel(document=1).sel(from_layer=0, to_layer=3)
    cosine = float((first @ last) / first.norm() / last.norm())
    assert float(whole) == pytest.approx(np.arccos(cosine) / np.pi, abs=1e-6)
    below = np.tri(4, dtype=bool)
    assert np.isnan(found.angular_distance.to_numpy()[:, below]).all()
    assert not np.isnan(found.angular_distance.to_numpy()[:, ~below]).any()


def test_a_block_that_hands_on_what_it_takes_has_none(model):
    with remove_blocks(model, [1]):
        found = measured(model)
    assert abs(found.block_influence.sel(block=1)).max() < 1e-12
    assert (found.update_ratio.sel(block=1) == 0).all()
    assert found.angular_distance.sel(from_layer=1, to_layer=2).max() < 1e-6  # arccos near 1 has half the digits
    assert found.block_influence.sel(block=[0, 2]).min() > 1e-3


def test_it_lies_between_0_and_2_and_knows_no_scale(model):
    with replace_block(model, 1, torch.neg), replace_block(model, 2, lambda states: 7 * states):
        found = measured(model)
    assert np.allclose(found.block_influence.sel(block=1), 2)
    assert np.allclose(found.angular_distance.sel(from_layer=1, to_layer=2), 1)
    assert abs(found.block_influence.sel(block=2)).max() < 1e-9
    assert np.allclose(found.update_ratio.sel(block=2), 6 / 7)
    with change_states(model, [1], lambda states: 5 * states):  # the norm in front of every part takes the factor away
        scaled = measured(model).block_influence.sel(block=0)
    assert np.allclose(scaled, measured(model).block_influence.sel(block=0), atol=1e-6)


def test_the_span_that_turns_least():
    angles = np.full((5, 5), np.nan)
    angles[np.triu_indices(5, 1)] = [0.1, 0.2, 0.5, 0.6, 0.3, 0.1, 0.7, 0.05, 0.4, 0.2]
    array = xr.DataArray(angles, dims=("from_layer", "to_layer"))
    assert closest_span(array, 1) == (2,)
    assert closest_span(array, 2) == (1, 2)
    assert closest_span(array, 4) == (0, 1, 2, 3)
    for wrong in (0, 5):
        with pytest.raises(InputError, match="A span of"):
            closest_span(array, wrong)


def test_one_document_or_one_token_is_refused(model):
    with pytest.raises(InputError, match="1 documents of 12 tokens"):
        block_influence(model, DOCUMENTS[:1], tokens=12)
    with pytest.raises(InputError, match="of 1 tokens"):
        block_influence(model, DOCUMENTS, tokens=1)
