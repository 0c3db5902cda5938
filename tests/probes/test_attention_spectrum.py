"""Spectra, ranks and mixing of patterns that can be worked out by hand, and of real ones against plain computations."""

from __future__ import annotations

from itertools import pairwise
from math import log, sqrt

import numpy as np
import pytest
import torch
import xarray as xr

import lens
from lens.base.errors import Cancelled, InputError
from lens.probes.attention_spectrum import attention_spectrum
from lens.probes.singular_values import rank_measures
from tests.models.families import build

T = 8


def uniform_causal(size: int = T) -> np.ndarray:
    return np.tri(size) / np.arange(1, size + 1)[:, None]


def previous_token(size: int = T) -> np.ndarray:
    found = np.eye(size, k=-1)
    found[0, 0] = 1
    return found


def sink(size: int = T) -> np.ndarray:
    return np.eye(1, size).repeat(size, 0)


KNOWN = {
    # pattern: σ₁, Σσ², stable rank, effective rank, κ, δ
    "identity": (np.eye(T), 1, 8, 8, 8, 1, 1),
    "uniform": (np.full((T, T), 1 / T), 1, 1, 1, 1, 0, 0),
    "uniform causal": (uniform_causal(), 1.379779, 761 / 280, 1.427603282, 5.271648342, 0.842756085, 0.875),
    "sink": (sink(), sqrt(8), 8, 1, 1, 0, 0),
    "previous token": (previous_token(), sqrt(2), 8, 4, 6.939933732, 1.322875656, 1),
}


@pytest.mark.parametrize("name", KNOWN)
def test_patterns_with_known_spectra(name: str):
    weights, first, energy, stable, effective, contraction, dobrushin = KNOWN[name]
    found = attention_spectrum(weights)
    assert float(found.singular_value[0]) == pytest.approx(first, rel=1e-6)
    assert float((found.singular_value**2).sum()) == pytest.approx(energy, rel=1e-12)
    assert float(found.stable_rank) == pytest.approx(stable, rel=1e-6)
    assert float(found.effective_rank) == pytest.approx(effective, rel=1e-6)
    assert float(found.contraction) == pytest.approx(contraction, abs=1e-8)
    assert float(found.dobrushin) == pytest.approx(dobrushin, abs=1e-12)


def test_singular_values_of_the_uniform_causal_pattern():
    found = attention_spectrum(uniform_causal()).singular_value.to_numpy()
    assert found[[0, 1, 2, 3, 7]] == pytest.approx([1.379779, 0.705770, 0.411044, 0.270083, 0.080134], abs=5e-7)
    assert np.log(found).sum() == pytest.approx(-np.log(np.arange(1, T + 1)).sum(), rel=1e-12)  # |det A| = 1/T!


@pytest.mark.parametrize(("size", "largest"), [(8, 1.380), (64, 1.598), (512, 1.720)])
def test_the_largest_singular_value_grows_with_the_length(size: int, largest: float):
    assert float(attention_spectrum(uniform_causal(size)).singular_value[0]) == pytest.approx(largest, abs=5e-4)


def test_eigenvalues_cannot_tell_what_singular_values_can():
    one, other = (attention_spectrum(weights) for weights in (previous_token(), sink()))
    assert np.array_equal(np.sort(one.self_attention), np.sort(other.self_attention))
    assert (float(one.gap), float(other.gap)) == (1, 1)
    assert float(one.effective_rank) > 6.9
    assert float(other.effective_rank) == pytest.approx(1)
    assert float(attention_spectrum(uniform_causal()).gap) == pytest.approx(0.5)
    assert float(attention_spectrum(np.full((T, T), 1 / T)).gap) == pytest.approx(1)


def test_ranks_come_in_order_whatever_the_pattern():
    logits = torch.randn(50, 20, 20, dtype=torch.float64) * torch.linspace(0.1, 8, 50)[:, None, None]
    found = attention_spectrum(torch.softmax(logits.masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf), -1))
    ladder = [found[name].to_numpy() for name in ("stable_rank", "participation_ratio", "energy_rank", "effective_rank")]
    assert all((lower <= upper * (1 + 1e-12)).all() for lower, upper in pairwise(ladder))
    assert (ladder[0] >= 1 - 1e-12).all()
    assert (ladder[-1] <= 20).all()
    singular = found.singular_value.to_numpy()
    assert ((singular[:, 0] >= 1 - 1e-12) & (singular[:, 0] <= sqrt(20))).all()


def test_states_differ_less_after_mixing_by_at_least_what_is_promised():
    """‖ΠAX‖ ≤ κ‖ΠX‖ in the Frobenius norm, and no column's range is wider than δ of what it was."""
    for scale in (0.3, 2.0, 6.0):
        weights = torch.softmax(scale * torch.randn(30, 30, dtype=torch.float64), -1).numpy()
        states = np.random.default_rng(0).standard_normal((30, 7))
        found = attention_spectrum(weights)
        after = weights @ states
        spread = np.linalg.norm(after - after.mean(0)), np.linalg.norm(states - states.mean(0))
        assert spread[0] <= float(found.contraction) * spread[1] * (1 + 1e-12)
        assert (np.ptp(after, axis=0) <= float(found.dobrushin) * np.ptp(states, axis=0) * (1 + 1e-12)).all()


def test_permuted_positions_have_the_same_spectrum():
    weights = torch.softmax(torch.randn(12, 12, dtype=torch.float64), -1).numpy()
    rows, columns = np.random.default_rng(1).permutation(12), np.random.default_rng(2).permutation(12)
    one, other = (attention_spectrum(each).singular_value.to_numpy() for each in (weights, weights[rows][:, columns]))
    assert one == pytest.approx(other, rel=1e-12)


def test_without_the_sink_the_rest_of_a_head_is_seen():
    weights = 0.9 * sink() + 0.1 * previous_token()
    assert float(attention_spectrum(weights).stable_rank) < 1.2
    rest = attention_spectrum(weights, drop_sink=True)
    assert rest.sizes["rank"] == T - 1
    assert rest["query"].to_numpy().tolist() == list(range(1, T))
    # Query 1 saw the first token alone: nothing is left of its row.
    assert rest.singular_value.to_numpy() == pytest.approx([*[1] * 6, 0], abs=1e-12)
    assert float(rest.numerical_rank) == 6


def test_a_single_position_and_a_zero_pattern():
    found = attention_spectrum(np.ones((1, 1)))
    assert (float(found.singular_value[0]), float(found.effective_rank), float(found.dobrushin)) == (1, 1, 0)
    nothing = rank_measures(np.zeros((1, 4)))
    assert nothing["numerical_rank"].tolist() == [0]
    assert np.isnan(nothing["effective_rank"]).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_patterns_of_a_model_against_numpy(family: str, tokenizer, tmp_path):
    model = lens.load(build(family), tokenizer)
    run = model.run(list(range(5, 17)), attention=True)
    found = attention_spectrum(run)
    assert run.attention is not None
    patterns = run.attention.double().numpy()
    assert found.singular_value.shape == (*patterns.shape[:2], 12)
    assert found.singular_value.to_numpy() == pytest.approx(np.linalg.svd(patterns, compute_uv=False), abs=1e-12)
    assert found.attrs["model"] == model.name
    assert {"units", "long_name"} <= set(found.effective_rank.attrs)
    found.to_netcdf(tmp_path / "spectrum.nc")
    with xr.open_dataset(tmp_path / "spectrum.nc") as again:
        xr.testing.assert_identical(again.load(), found)


def test_a_head_alone_and_all_of_a_block():
    one = attention_spectrum(uniform_causal())
    both = attention_spectrum(np.stack([uniform_causal(), previous_token()]))
    assert one.effective_rank.dims == ()
    assert both.effective_rank.dims == ("head",)
    assert float(both.effective_rank[0]) == float(one.effective_rank)


def test_bad_patterns_are_refused(tiny):
    with pytest.raises(InputError, match="no attention patterns"):
        attention_spectrum(tiny.run([5, 9, 17]))
    with pytest.raises(InputError, match=r"shape \(3, 4\)"):
        attention_spectrum(np.ones((3, 4)))
    with pytest.raises(InputError, match="sums to 2"):
        attention_spectrum(2 * np.eye(3))
    with pytest.raises(InputError, match="negative or not finite"):
        attention_spectrum(-np.eye(3))


def test_it_can_be_stopped_between_heads():
    def stop() -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        attention_spectrum(np.stack([np.eye(3)] * 2), check=stop)


def test_uniform_attention_has_the_logarithm_of_its_length():
    assert float(attention_spectrum(np.eye(5)).energy_rank) == pytest.approx(np.exp(log(5)))
