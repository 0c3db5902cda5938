"""States of all positions become one: measures against exact values, theory and ablated models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from lens.base.errors import InputError
from lens.models.edits import replace_block
from lens.models.head_weights import head_weights
from lens.models.model import Model
from lens.models.run import block_states
from lens.probes.rank_collapse import (
    VARIANTS,
    ablation,
    attention_path,
    collapse_measures,
    effective_rank,
    pure_attention,
    rank_collapse,
)
from tests.models.families import build

IDS = list(range(3, 19))


def ratio(states: torch.Tensor) -> np.ndarray:
    return collapse_measures(states)["residual_ratio"]


# -- measures -----------------------------------------------------------------------------------------------------------


def test_identical_rows_have_collapsed():
    found = collapse_measures(torch.tensor([3.0, -4.0]).expand(1, 8, 2))
    assert found["residual_ratio"] == 0
    assert found["composite_ratio"] == 0
    assert found["high_to_low"] == -np.inf
    assert found["mean_cosine"] == pytest.approx(1, abs=1e-15)
    assert np.isnan(found["effective_rank"]).all()


def test_rows_without_a_mean_have_nothing_in_common():
    found = collapse_measures(torch.tensor([[[1.0, 0], [-1, 0], [0, 1], [0, -1]]]))
    assert found["residual_ratio"] == 1
    assert found["high_to_low"] == np.inf
    assert found["mean_cosine"] == pytest.approx(-1 / 3)  # two of six pairs point away from each other
    assert found["effective_rank"] == pytest.approx(2)
    assert found["composite_ratio"] == 1


def test_a_hand_computed_case():
    """Rows (3, 0) and (1, 0): mean (2, 0), residual ±1."""
    found = collapse_measures(torch.tensor([[[3.0, 0], [1, 0]]]))
    assert found["residual_ratio"] == pytest.approx(math.sqrt(2 / 10))
    assert found["high_to_low"] == pytest.approx(math.log(math.sqrt(2) / math.sqrt(8)))
    assert found["composite_ratio"] == pytest.approx(math.sqrt(2 * 1) / math.sqrt(4 * 3))
    assert found["mean_cosine"] == pytest.approx(1)
    assert found["effective_rank"] == pytest.approx(1)


def test_the_measures_are_of_shape_and_not_of_size_and_high_to_low_is_the_ratio_in_other_units():
    states = torch.randn(3, 20, 12, dtype=torch.float64) + 2
    found, larger = collapse_measures(states), collapse_measures(1e3 * states)
    for name in found:
        assert np.allclose(found[name], larger[name], rtol=1e-12)
    ratios = found["residual_ratio"]
    assert np.allclose(found["high_to_low"], np.log(ratios / np.sqrt(1 - ratios**2)), rtol=1e-12)


def test_effective_rank_is_that_of_the_singular_values_for_wide_and_tall_states():
    for shape in ((6, 20), (20, 6)):
        states = torch.randn(shape, dtype=torch.float64)
        shares = torch.linalg.svdvals(states)
        shares = shares / shares.sum()
        assert effective_rank(states) == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-10)


def test_one_large_row_makes_states_look_different_from_their_mean():
    """A massive activation hides collapse from ρ: its limit is √(1 − 1/T), whatever the others are."""
    states = torch.ones(1, 64, 8, dtype=torch.float64)
    states[0, 0] = 1e9
    assert ratio(states)[0] == pytest.approx(math.sqrt(1 - 1 / 64), rel=1e-6)
    assert ratio(states[:, 1:])[0] == 0


# -- theory -------------------------------------------------------------------------------------------------------------


def test_random_attention_collapses_by_a_decade_a_layer():
    """Softmax of fresh N(0, 0.5²) logits, 32 positions: √((e^¼ − 1)/32) = 0.094 a layer once collapsed."""
    generator = torch.Generator().manual_seed(0)

    def through_three_layers() -> np.ndarray:
        states = [torch.randn(32, 16, dtype=torch.float64, generator=generator)]
        for _ in range(3):
            logits = 0.5 * torch.randn(32, 32, dtype=torch.float64, generator=generator)
            states.append(logits.softmax(-1) @ states[-1])
        return ratio(torch.stack(states))

    medians = np.median([through_three_layers() for _ in range(400)], axis=0)
    assert medians == pytest.approx([0.986, 0.476, 0.049, 0.0045], rel=0.06)
    assert medians[3] / medians[2] == pytest.approx(math.sqrt((math.exp(0.25) - 1) / 32), rel=0.06)


@pytest.mark.parametrize(("causal", "order"), [(False, 3), (True, 1)])
def test_what_one_layer_of_pure_attention_leaves_is_of_third_order_and_of_first_with_a_causal_mask(causal: bool, order: int):
    apart = torch.randn(10, 6, dtype=torch.float64)
    apart = apart - apart.mean(0)
    common, form = torch.randn(6, dtype=torch.float64), torch.randn(6, 6, dtype=torch.float64)

    def left(size: float) -> float:
        after = pure_attention(common + size * apart, form, 1, causal=causal)[1]
        return float((after - after.mean(0)).norm())

    sizes = 2.0 ** -np.arange(7, 11)
    orders = np.diff(np.log2([left(size) for size in sizes])) / -1
    assert orders == pytest.approx([order] * 3, abs=0.05)


def test_pure_attention_collapses_doubly_exponentially_without_a_mask_and_exponentially_with_one():
    states = 1 + 0.5 * torch.randn(12, 8, dtype=torch.float64)
    form = 0.3 * torch.randn(8, 8, dtype=torch.float64)
    free = np.log(ratio(pure_attention(states, form, 3)))
    causal = np.log(ratio(pure_attention(states, form, 40, causal=True)))
    assert (np.diff(free)[1:] / np.diff(free)[:-1] > 2).all()  # each step is more than twice the last one
    assert np.diff(causal)[20:] == pytest.approx(np.diff(causal)[20], rel=0.05)  # each is the same


# -- models -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "gpt2", "phi"])
def model(request):
    return Model(build(request.param), name=request.param)


def test_every_variant_is_the_live_model_under_its_edits(model: Model):
    found = rank_collapse(model, IDS)
    assert list(found.variant.to_numpy()) == list(VARIANTS)
    plain = model.run(IDS).residual
    with_first, without = (collapse_measures(states)["residual_ratio"] for states in (plain, plain[:, 1:]))
    whole = found.residual_ratio.sel(variant="whole")
    assert np.array_equal(whole.sel(first_token="with"), with_first)
    assert np.array_equal(whole.sel(first_token="without"), without)
    for name in VARIANTS:
        with ablation(model, name):
            residual = model.run(IDS).residual
        assert np.array_equal(found.residual_ratio.sel(variant=name, first_token="with"), ratio(residual))
    assert model.edits == ()
    assert found.attrs["model"] == model.name
    assert "edits" not in found.attrs


def test_without_skips_and_mlps_attention_alone_makes_the_stream(model: Model):
    with ablation(model, "neither"):
        found = block_states(model.module, model.anatomy, torch.tensor([IDS]), ("residual", "attention"))
    assert torch.equal(found["residual"][1:], found["attention"][model.n_layers :])


def test_without_mlps_a_model_is_one_with_silent_mlps(model: Model):
    with ablation(model, "no_mlp"):
        found = model.run(IDS).residual
    with replace_block(model, 0, torch.zeros_like, part="mlp"):
        first = model.run(IDS).residual
    assert torch.equal(found[1], first[1])


def test_the_attention_path_is_made_of_patterns_and_matrices_alone():
    """By hand for the first block: the patterns mix states that went through gain, values and outputs."""
    model = Model(build("llama"))
    run = model.run(IDS, attention=True)
    found = attention_path(run, head_weights(model))
    block: Any = model.anatomy.blocks[0].module
    assert run.attention is not None
    gain, attention = block.input_layernorm.weight, block.self_attn
    values = (run.residual[0] * gain) @ attention.v_proj.weight.T
    heads = [run.attention[0, head] @ values[:, 8 * (head // 2) : 8 * (head // 2 + 1)] for head in range(4)]
    wanted = (torch.cat(heads, -1) @ attention.o_proj.weight.T).double()
    assert torch.allclose(found[1], wanted / wanted.norm(), atol=1e-6)
    assert torch.allclose(found.norm(dim=(1, 2)), torch.ones(4, dtype=torch.float64))
    with pytest.raises(InputError, match="no attention patterns"):
        attention_path(model.run(IDS), head_weights(model))
    with pytest.raises(InputError, match="Weights of 1 blocks"):
        attention_path(run, head_weights(model, [1]))


def test_what_it_cannot_do_is_refused(model: Model):
    with pytest.raises(InputError, match="'none'.*whole, no_skips, no_mlp, neither"):
        rank_collapse(model, IDS, variants=["none"])
    with pytest.raises(InputError, match="2 tokens.*three or more"):
        rank_collapse(model, IDS[:2])


def test_a_data_set_survives_its_file(model: Model, tmp_path):
    found = rank_collapse(model, IDS, variants=["whole"])
    found.to_netcdf(tmp_path / "found.nc", engine="h5netcdf")
    assert xr.load_dataset(tmp_path / "found.nc", engine="h5netcdf").identical(found)
