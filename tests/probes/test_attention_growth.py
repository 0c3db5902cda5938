"""Growth with the length: of heads whose growth is known, of straight lines against scipy, and of prefixes of a run."""

from __future__ import annotations

from math import lgamma, log
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr

import lens
from lens.base.errors import Cancelled, InputError
from lens.probes.attention_battery import attention_battery
from lens.probes.attention_growth import attention_growth, growth_of
from tests.models.families import build

IDS = [5 + (7 * i) % 100 for i in range(64)]


@pytest.fixture(scope="module")
def model(tokenizer):
    return lens.load(build("llama"), tokenizer)


def test_slopes_and_intervals_are_those_of_scipy():
    rng = np.random.default_rng(0)
    x = np.log([16.0, 32, 64, 128, 256])
    values = 0.7 * x[None, :, None, None] + 0.1 * rng.standard_normal((2, 5, 3, 4))
    slope, low, high = growth_of(x, values)
    expected: Any = scipy.stats.linregress(x, values[1, :, 2, 3])
    assert slope[1, 2, 3] == pytest.approx(expected.slope)
    assert high[1, 2, 3] - slope[1, 2, 3] == pytest.approx(scipy.stats.t.ppf(0.975, 3) * expected.stderr)
    assert slope[1, 2, 3] - low[1, 2, 3] == pytest.approx(scipy.stats.t.ppf(0.975, 3) * expected.stderr)


def test_what_is_missing_is_left_out():
    x = np.log([16.0, 32, 64, 128])
    values = np.stack([2 * x, 3 * x])[:, :, None, None]
    values[0, 3] = values[1, 2:] = np.nan
    slope, low, high = growth_of(x, values)
    assert (slope[0, 0, 0], low[0, 0, 0], high[0, 0, 0]) == pytest.approx((2, 2, 2))
    assert np.isnan([slope[1, 0, 0], low[1, 0, 0], high[1, 0, 0]]).all()


def test_uniform_attention_dilutes(tokenizer):
    """Queries of hardly any length see all keys alike."""
    module: Any = build("gpt2")
    with torch.no_grad():
        for parameter in module.transformer.h[0].attn.c_attn.parameters():
            parameter[..., :32] *= 1e-6
    found = attention_growth(lens.load(module, tokenizer), IDS, blocks=[0])
    lengths = found.length.to_numpy()
    assert lengths.tolist() == [16, 32, 64]
    entropies = np.array([lgamma(length + 1) / length for length in lengths])
    assert found.mean_entropy.to_numpy()[:, 0, 0] == pytest.approx(entropies, rel=1e-6)
    assert found.effective_support.to_numpy()[:, 0, 0] == pytest.approx((lengths + 1) / 2, rel=1e-6)
    growth = found.growth.sel(block=0, head=0)
    assert float(growth.sel(measure="mean_entropy")) == pytest.approx(np.polyfit(np.log(lengths), entropies, 1)[0], rel=1e-6)
    assert float(growth.sel(measure="effective_support")) == pytest.approx(log(65 / 17) / log(4), abs=0.01)
    assert (found.kind == "dilutes").all()


def test_a_window_keeps_its_support(tokenizer):
    found = attention_growth(lens.load(build("mistral"), tokenizer), IDS)  # four keys
    assert (found.effective_support <= 4).all()
    assert (found.growth.sel(measure="mean_entropy") < 0.3).all()
    assert (found.kind != "dilutes").all()
    assert (found.kind == "keeps its support").any()
    assert float(found.growth.sel(measure="effective_rank").min()) > 0.5  # a band has as many directions as positions


def test_prefixes_of_a_causal_model_are_corners_of_the_whole(model):
    states = lens.head_states(model, IDS)
    found = attention_growth(model, IDS, (16, 40, 64), measures=["effective_rank"])
    corner = states[1].pattern(2)[:40, :40]
    singular = np.linalg.svd(corner, compute_uv=False)
    shares = singular / singular.sum()
    assert float(found.effective_rank.sel(length=40, block=1, head=2)) == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum()), rel=1e-4
    )
    assert "kind" not in found


def test_each_length_has_the_table_of_its_length(tokenizer):
    """LongRoPE has one for texts up to 16 tokens and one for all beyond: the prefix is no corner of the whole."""
    model = lens.load(build("phi3-longrope"), tokenizer)
    found = attention_growth(model, IDS, measures=["mean_entropy"], blocks=[1])
    (alone,), (whole,) = (lens.head_states(model, ids, [1]) for ids in (IDS[:16], IDS))
    entropy = [scipy.stats.entropy(each.pattern(0)[:16, :16], axis=-1).mean() for each in (alone, whole)]
    assert float(found.mean_entropy.sel(length=16, head=0)[0]) == pytest.approx(entropy[0], rel=1e-9)
    assert entropy[0] != pytest.approx(entropy[1], rel=1e-4)


def test_the_sink_can_be_left_out_and_all_can_be_saved(model, tmp_path):
    found = attention_growth(model, IDS, drop_sink=True, blocks=[2])
    again = attention_battery(lens.head_states(model, IDS, [2]), drop_sink=True)
    assert found.stable_rank.sel(length=64).to_numpy() == pytest.approx(again.stable_rank.to_numpy(), rel=1e-12)
    found.to_netcdf(tmp_path / "growth.nc")
    with xr.open_dataset(tmp_path / "growth.nc") as opened:
        xr.testing.assert_identical(opened.load(), found)


def test_lengths_that_say_nothing_are_refused(model):
    with pytest.raises(InputError, match="40 tokens"):
        attention_growth(model, IDS[:40])
    for lengths in ((16, 32), (4, 16, 32), (16, 32, 65)):
        with pytest.raises(InputError, match="three or more from 16 to 64"):
            attention_growth(model, IDS, lengths)

    def stop() -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        attention_growth(model, IDS, check=stop)
