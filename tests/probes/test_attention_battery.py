"""The battery says what the single probes say, of every kind of head, and stays small."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from math import lgamma

import numpy as np
import pytest
import torch
import xarray as xr

import lens
from lens.base.errors import Cancelled, InputError
from lens.models.heads import HeadStates
from lens.probes.attention_battery import MEASURES, attention_battery, battery_cost, head_detail
from lens.probes.attention_entropy import attention_entropy
from lens.probes.attention_spectrum import attention_spectrum
from lens.probes.log_normality import log_normality
from lens.probes.offset_profile import profile_of
from lens.probes.positional_kernel import diagonal_score, previous_token_score
from lens.probes.singular_values import EXACT
from tests.models.families import build

IDS = list(range(5, 45))


@pytest.fixture(scope="module")
def llama(tokenizer):
    return lens.load(build("llama"), tokenizer)


@pytest.fixture(scope="module")
def states(llama):
    return lens.head_states(llama, IDS)


def random_states(positions: int, heads: int = 1, width: int = 8, **changes) -> HeadStates:
    """A block without RoPE, of random queries and keys."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, heads, positions, width)
    whole = HeadStates(
        block=0, query=query, key=key, value=value, theta=np.zeros(0), attention_factor=1.0, layout="half", rotary=(0, 0),
        scaling=0.5, softcap=None, window=None, sinks=None,
    )  # fmt: skip
    return replace(whole, **changes)


def single_probes(states: HeadStates, head: int, drop_sink: bool, renormalise: bool) -> dict[str, float]:
    """The same numbers, from the probes of bare patterns."""
    pattern = states.pattern(head)
    logits = states.logits(head)
    window = states.window if states.window is None or not drop_sink else None
    spectrum = attention_spectrum(pattern, drop_sink=drop_sink, renormalise=renormalise)
    entropy = attention_entropy(pattern, drop_sink=drop_sink, renormalise=renormalise, window=window)
    shape = log_normality(states, skip_first=drop_sink).isel(block=0, head=head)
    left = int(drop_sink)
    found: dict[str, xr.DataArray] = {str(name): spectrum[name] for name in spectrum.data_vars if spectrum[name].ndim == 0}
    found |= {name: entropy[name] for name in ("mean_entropy", "key_entropy", "top_key", "top_key_share")}
    found |= {name: shape[name] for name in ("skewness", "excess_kurtosis", "predicted_entropy", "frozen")}
    whole = attention_entropy(pattern)
    return {name: float(value) for name, value in found.items()} | {
        "normalised_entropy": float(entropy.normalised_entropy.mean()),
        "effective_support": float(entropy.effective_support.mean()),
        "first_token": float(whole.first_token),
        "lacking": float(whole.lacking),
        "logit_variance": float(shape.variance),
        "entropy_gap": float(shape.entropy - shape.predicted_entropy),
        "toeplitz_share": profile_of(logits[left:, left:])[1],
        "largest_singular_value": float(spectrum.singular_value[0]),
    }


def compare(states: HeadStates, head: int, *, drop_sink: bool = False, renormalise: bool = False) -> None:
    found = attention_battery(states, drop_sink=drop_sink, renormalise=renormalise).isel(block=0, head=head)
    expected = single_probes(states, head, drop_sink, renormalise)
    assert len(expected) > 20
    for name, value in expected.items():
        # Ranks are kept in float32 by the single probe.
        assert float(found[name]) == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize("drop_sink", [False, True])
def test_numbers_are_those_of_the_single_probes(states, drop_sink: bool):
    compare(states[1], 2, drop_sink=drop_sink)


@pytest.mark.parametrize(("drop_sink", "renormalise"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("window", [None, 20])
def test_heads_with_learned_sinks_and_windows(drop_sink: bool, renormalise: bool, window: int | None):
    states = random_states(40, heads=2, sinks=torch.tensor([3.0, -1.0]), window=window)
    if window is None or not drop_sink:
        compare(states, 0, drop_sink=drop_sink, renormalise=renormalise)
    found = attention_battery(states, drop_sink=drop_sink, renormalise=renormalise)
    assert float(found.lacking[0, 0]) > 0.2 > float(found.lacking[0, 1])
    if renormalise:
        assert float(found.largest_singular_value[0, 0]) >= 1


def test_a_window_is_what_a_query_could_see():
    """Uniform attention within a window, dropped sink or not: as wide as it can be."""
    flat = random_states(40, window=6, scaling=0.0)
    for drop_sink, support in ((False, [1, 2, 3, 4, 5, *[6] * 35]), (True, [1, 2, 3, 4, 5, *[6] * 34])):
        found = attention_battery(flat, drop_sink=drop_sink).isel(block=0, head=0)
        assert float(found.normalised_entropy) == pytest.approx(1)
        assert float(found.near) == pytest.approx(1)
        assert float(found.effective_support) == pytest.approx(np.mean(support))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "qwen3", "gpt2", "gpt-oss", "deepseek-v3"])
def test_families_of_heads(family: str, tokenizer):
    """Grouped queries, windows, soft caps, norms of queries, learned positions, sinks, and rotary parts of heads."""
    model = lens.load(build(family), tokenizer)
    states = lens.head_states(model, IDS[:24])
    found = attention_battery(states)
    run = model.run(IDS[:24], attention=True)
    assert run.attention is not None
    patterns = run.attention.double()
    singular = np.linalg.svd(patterns.numpy(), compute_uv=False)
    assert found.largest_singular_value.to_numpy() == pytest.approx(singular[..., 0], rel=1e-4)
    assert found.first_token.to_numpy() == pytest.approx(patterns[..., 1:, 0].mean(-1).numpy(), abs=1e-4)
    assert found.lacking.to_numpy() == pytest.approx(1 - patterns.sum(-1).mean(-1).numpy(), abs=1e-4)
    for name, measure in MEASURES.items():
        values = found[name].to_numpy()
        if measure.range is not None:
            inside = values[~np.isnan(values)]
            assert ((inside >= measure.range[0] - 1e-12) & (inside <= measure.range[1] + 1e-12)).all(), name
        assert found[name].attrs == {"long_name": measure.words, "units": measure.unit}


def test_uniform_attention_has_the_numbers_of_the_textbook():
    """The uniform causal pattern of eight positions, worked out by hand."""
    found = attention_battery(random_states(8, scaling=0.0)).isel(block=0, head=0)
    assert float(found.stable_rank) == pytest.approx(1.427603282, rel=1e-9)
    assert float(found.effective_rank) == pytest.approx(5.271648342, rel=1e-9)
    assert float(found.contraction) == pytest.approx(0.842756085, rel=1e-8)
    assert float(found.dobrushin) == pytest.approx(0.875)
    assert float(found.mean_entropy) == pytest.approx(lgamma(9) / 8)
    assert float(found.effective_support) == pytest.approx(4.5)
    assert float(found.gap) == pytest.approx(0.5)
    assert float(found.first_token) == pytest.approx(np.mean([1 / n for n in range(2, 9)]))
    assert np.isnan(float(found.logit_variance))  # no query sees 16 keys


def test_diagonal_scores_are_the_known_ones(states):
    found = attention_battery(states, measures=["previous_token", "self_attention"])
    assert set(found.data_vars) == {"previous_token", "self_attention"}
    pattern = states[2].pattern(1)
    assert float(found.previous_token[2, 1]) == pytest.approx(previous_token_score(pattern))
    assert float(found.self_attention[2, 1]) == pytest.approx(diagonal_score(pattern))
    for drop_sink in (False, True):
        near = attention_battery(states, drop_sink=drop_sink, measures=["near"]).near[2, 1]
        left = pattern[1:, 1:] / pattern[1:, 1:].sum(-1, keepdims=True) if drop_sink else pattern
        rows = [left[query, max(0, query - 7) : query + 1].sum() for query in range(8 - drop_sink, len(left))]
        assert float(near) == pytest.approx(np.mean(rows))


def test_no_square_of_all_heads_is_held():
    """Sixteen heads take as much beside their states as two do."""
    peaks = []
    for heads in (2, 16):
        states = random_states(128, heads=heads)
        tracemalloc.start()
        attention_battery(states)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_long_texts_say_what_is_bounded_and_what_is_missing():
    positions = EXACT + 8
    states = random_states(positions)
    found = attention_battery(states).isel(block=0, head=0)
    pattern = states.pattern(0)
    singular = np.linalg.svd(pattern, compute_uv=False)
    energy = (singular**2).sum()
    assert float(found.stable_rank) == pytest.approx(energy / singular[0] ** 2, rel=1e-8)
    assert float(found.participation_ratio) == pytest.approx(energy**2 / (singular**4).sum(), rel=1e-8)
    assert float(found.contraction) == pytest.approx(np.linalg.norm(pattern - pattern.mean(0), 2), rel=1e-8)
    assert all(np.isnan(float(found[name])) for name in ("effective_rank", "energy_rank", "numerical_rank", "leading_share"))
    assert "stable_rank and participation_ratio alone" in found.attrs["ranks"]
    assert "lower bound" in found.attrs["dobrushin"]
    detail = head_detail(states, 0)
    assert detail.singular_value.to_numpy() == pytest.approx(singular[:32], rel=1e-8)
    assert detail.known_singular_value.sel(known="identity").to_numpy() == pytest.approx(1)


@pytest.mark.parametrize("drop_sink", [False, True])
def test_one_head_in_detail(states, drop_sink: bool, tmp_path):
    found = head_detail(states[1], 3, drop_sink=drop_sink)
    first = int(drop_sink)
    expected = attention_spectrum(states[1].pattern(3), drop_sink=drop_sink)
    assert found.singular_value.to_numpy() == pytest.approx(expected.singular_value.to_numpy(), rel=1e-9)
    assert found.attrs["effective_rank"] == pytest.approx(float(expected.effective_rank), rel=1e-6)
    assert found["key"].to_numpy().tolist() == list(range(first, 40))
    assert found.attention.to_numpy().sum(-1) == pytest.approx(1)
    assert np.isnan(found.logits.to_numpy()[0, 1:]).all()
    known = found.known_singular_value
    assert known.sel(known="identity").to_numpy() == pytest.approx(1)
    size = 40 - first
    assert float((known.sel(known="uniform") ** 2).sum()) == pytest.approx(sum(1 / n for n in range(1, size + 1)))
    assert known.sel(known="previous token").to_numpy() == pytest.approx([2**0.5, *[1] * (size - 2), 0], abs=1e-12)
    # Products of queries and keys have no more directions than a head has dimensions.
    assert (found.logit_singular_value.to_numpy()[8:] < 1e-12 * float(found.logit_singular_value[0])).all()
    found.to_netcdf(tmp_path / "head.nc")
    with xr.open_dataset(tmp_path / "head.nc") as again:
        xr.testing.assert_identical(again.load(), found)


def test_the_least_text_has_numbers():
    found = attention_battery(random_states(3)).isel(block=0, head=0)
    assert float(found.stable_rank) >= 1
    assert np.isnan(float(found.near))
    with pytest.raises(InputError, match="2 tokens"):
        attention_battery(random_states(2))
    with pytest.raises(InputError, match="no_such"):
        attention_battery(random_states(8), measures=["no_such"])
    with pytest.raises(InputError, match="No block"):
        attention_battery([])


def test_it_can_be_stopped_between_heads():
    calls = []

    def stop() -> None:
        calls.append(0)
        if len(calls) == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        attention_battery(random_states(8, heads=4), check=stop)
    assert len(calls) == 2


def test_costs_are_known_beforehand(llama, states):
    found = battery_cost(llama, len(IDS))
    assert found["heads"] == sum(len(block.query) for block in states)
    held = sum(4 * (block.query.numel() + block.key.numel() + block.value.numel()) for block in states)
    assert held < found["bytes"] < held + 100 * len(IDS) ** 2
    assert battery_cost(llama, len(IDS), blocks=[0])["heads"] == 4
    assert battery_cost(llama, 512)["singular_values"] == 512
    assert battery_cost(llama, 513)["singular_values"] == 32
    # From the cube to the square, where only the largest singular values are left.
    assert battery_cost(llama, 513)["multiplications"] < battery_cost(llama, 512)["multiplications"]
    with pytest.raises(InputError, match="2 positions"):
        battery_cost(llama, 2)


def test_costs_of_heads_that_a_configuration_does_not_tell():
    """Compressed keys and values (DeepSeek), and heads of several widths (Gemma 4)."""
    for family in ("deepseek-v2", "gemma4"):
        model = lens.load(build(family))
        states = lens.head_states(model, IDS)
        held = sum(4 * (block.query.numel() + block.key.numel() + block.value.numel()) for block in states)
        assert battery_cost(model, len(IDS))["bytes"] == held + 64 * len(IDS) ** 2


def test_without_the_first_token_three_are_left():
    short = random_states(3)
    assert np.isfinite(attention_battery(short).previous_token).all()
    with pytest.raises(InputError, match="3 tokens.*4 or more"):
        attention_battery(short, drop_sink=True)


def test_entropy_of_equal_logits_is_the_logarithm():
    found = attention_battery(random_states(20, scaling=0.0), measures=["entropy_gap", "logit_variance"]).isel(block=0, head=0)
    assert float(found.entropy_gap) == pytest.approx(0, abs=1e-12)
