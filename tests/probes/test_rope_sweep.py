"""Loss under other rotary tables: as of a model that was built with them, exactly the trained one's where nothing is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

import lens
from lens.base.errors import Cancelled, InputError, UnsupportedModelError
from lens.base.progress import CancelToken, Step
from lens.corpora import Corpus
from lens.models.frequencies import rope_table
from lens.models.rotary import rotaries
from lens.probes.rope_sweep import TRAINED, lane_ablations, rope_sweep, trained_table
from lens.probes.verdict import document_interval
from tests.models.families import build, word_tokenizer

IDS = [[5, 9, 17, 3, 44, 21, 8, 90, 7, 7, 61, 12], [33, 2, 80, 80, 14, 6, 101, 55, 9]]


def buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


def assert_same(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = dict(module.named_buffers())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def losses(module: torch.nn.Module, ids: list[int], **options) -> np.ndarray:
    mask = torch.ones((1, len(ids)))  # without one, positions that do not go up by one count as the start of another text
    with torch.no_grad():
        logits = module(input_ids=torch.tensor([ids]), attention_mask=mask, use_cache=False, **options).logits[0, :-1]
    return cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").double().numpy()


def rebuilt(module: torch.nn.Module, base: float) -> torch.nn.Module:
    """The same weights in a model whose configuration has another base: what an edit must be equal to."""
    settings = {**module.config.to_dict(), "rope_parameters": {"rope_type": "default", "rope_theta": base}}
    other = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings)).eval()
    other.load_state_dict(module.state_dict())
    return other


# -- what is measured -----------------------------------------------------------------------------


def test_the_trained_base_gives_the_same_bits(tiny):
    base = rotaries(tiny)[0].table.base
    sweep = rope_sweep(tiny, IDS, [base, 10 * base])
    assert np.array_equal(sweep.loss[0], sweep.loss[1])
    assert (sweep.cost[:2] == 0).all()
    assert (sweep.bin_cost[:2] == 0).all()
    assert (sweep.cost[2] != 0).all()


@pytest.mark.parametrize("base", [20.0, 1e6])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_losses_are_those_of_a_model_built_with_that_base(family, base):
    module = build(family)
    sweep = rope_sweep(lens.load(module), IDS, [base])
    long, short = (losses(rebuilt(module, base), ids) for ids in IDS)
    expected = [*(long[:8] + short) / 2, *long[8:]]
    assert sweep.loss[1].to_numpy() == pytest.approx(expected, rel=1e-4)
    assert sweep.scored.to_numpy().tolist() == [2] * 8 + [1] * 3
    assert float(sweep.mean_loss[1]) == pytest.approx((long.sum() + short.sum()) / 19, rel=1e-5)


def test_with_all_lanes_stopped_positions_are_gone_and_with_none_nothing_is_changed(tiny):
    lanes = len(rotaries(tiny)[0].theta)
    sweep = rope_sweep(tiny, IDS[:1], {"all": np.ones(lanes, bool), "none": np.zeros(lanes, bool)})
    nowhere = losses(tiny.module, IDS[0], position_ids=torch.zeros((1, len(IDS[0])), dtype=torch.int64))
    assert sweep.loss.sel(table="all").to_numpy() == pytest.approx(nowhere, rel=1e-4)
    assert np.array_equal(sweep.loss.sel(table="none"), sweep.loss.sel(table=TRAINED))


def test_positions_divided_by_a_factor_are_frequencies_divided_by_it(tiny):
    """Linear interpolation by its definition: position m is read as m/4."""
    table = trained_table(tiny)
    sweep = rope_sweep(tiny, IDS[:1], [rope_table("linear", table.base, table.width, factor=4.0)])
    assert sweep.table[1] == "linear, factor 4"
    divided = losses(tiny.module, IDS[0], position_ids=torch.arange(len(IDS[0]))[None] / 4)
    assert sweep.loss[1].to_numpy() == pytest.approx(divided, rel=1e-4)


def test_attention_is_summed_up_as_by_hand(tiny):
    sweep = rope_sweep(tiny, IDS, [100.0], patterns=1)
    patterns = tiny.run(IDS[0], attention=True).attention.double().numpy()
    size = len(IDS[0])
    for block, head in [(0, 0), (2, 3)]:
        seen = patterns[block, head]
        rows = range(1, size)
        expected = {
            "attended_distance": np.mean([sum(seen[q, k] * (q - k) for k in range(q + 1)) for q in rows]),
            "previous_token": np.mean([seen[q, q - 1] for q in rows]),
            "first_token": np.mean([seen[q, 0] for q in rows]),
            "same_token": np.mean([seen[q, q] for q in rows]),
        }
        found = {name: float(sweep[name].sel(table=TRAINED)[block, head]) for name in expected}
        assert found == pytest.approx(expected, rel=1e-5)
    assert not np.allclose(sweep.previous_token[0], sweep.previous_token[1])


# -- bins and intervals ---------------------------------------------------------------------------


def test_intervals_leave_out_whole_documents(tiny):
    words = np.random.default_rng(3).integers(4, 123, (60, 40))
    corpus = Corpus("made up", [" ".join(f"w{word}" for word in row) for row in words])
    sweep = rope_sweep(tiny, corpus, [50.0], tokens=200, window=20, bins=(0, 8, 19))
    assert sweep.attrs["corpus_hash"] == corpus.digest
    cost, weight = sweep.document_cost[1].to_numpy().astype(float), sweep.document_scored.to_numpy()
    low, high = document_interval(
        list(zip(cost * weight, weight, strict=True)), lambda d: sum(c for c, _ in d) / sum(w for _, w in d)
    )
    assert (float(sweep.cost_low[1]), float(sweep.cost_high[1])) == pytest.approx((low, high), rel=1e-4)
    assert float(sweep.cost[1]) == pytest.approx(float(sweep.mean_loss[1] - sweep.mean_loss[0]), abs=1e-5)
    share = sweep.scored.to_numpy()
    by_hand = [np.average(sweep.loss[1, part], weights=share[part]) for part in (slice(0, 8), slice(8, 19))]
    assert sweep.bin_loss[1].to_numpy() == pytest.approx(by_hand, rel=1e-5)
    assert (sweep.bin_loss_low < sweep.bin_loss).all()
    assert (sweep.bin_loss < sweep.bin_loss_high).all()


def test_one_document_has_no_interval(tiny):
    sweep = rope_sweep(tiny, IDS[:1], [50.0])
    assert np.isnan(sweep.cost_low).all()
    assert np.isfinite(sweep.cost).all()


def test_bins_double_from_sixteen(tiny):
    sweep = rope_sweep(tiny, [list(range(4, 54))], [50.0])
    assert sweep.bin_start.to_numpy().tolist() == [0, 16, 32]
    assert sweep.bin_stop.to_numpy().tolist() == [16, 32, 49]


def test_the_result_survives_a_file(tiny, tmp_path: Path):
    sweep = rope_sweep(tiny, IDS, [50.0, trained_table(tiny)], patterns=1)
    sweep.to_netcdf(tmp_path / "sweep.nc")
    with xr.open_dataset(tmp_path / "sweep.nc") as again:
        xr.testing.assert_identical(again.load(), sweep)
    assert sweep.base.to_numpy().tolist() == [10_000, 50, 10_000]
    assert sweep.kind.to_numpy().tolist() == [TRAINED, "base", "default"]


# -- lanes ----------------------------------------------------------------------------------------


def test_ablations_tell_slow_lanes_from_fast_ones(smollm2):
    found = lane_ablations(smollm2, 0.5)
    stopped = {name: np.flatnonzero(mask).tolist() for name, mask in found.items() if isinstance(mask, np.ndarray)}
    assert stopped == {
        "slowest quarter stopped": list(range(24, 32)),
        "slowest eighth stopped": [28, 29, 30, 31],
        "fastest quarter stopped": list(range(8)),
        "fastest eighth stopped": [0, 1, 2, 3],
        "all lanes stopped": list(range(32)),
    }
    theta = trained_table(smollm2).theta
    scaled = found["lanes 0 to 3 times 0.5"].theta
    assert (scaled[:4] == theta[:4] / 2).all()
    assert (scaled[4:] == theta[4:]).all()
    assert len([name for name in found if "times" in name]) == 8


def test_a_model_with_two_tables_has_no_one_table():
    with pytest.raises(InputError, match="one for all blocks"):
        lane_ablations(lens.load(build("gemma3-both")))


def test_slow_lanes_matter_little_and_fast_ones_much_to_smollm2(smollm2):
    text = (
        "Paris is the capital of France and has been one for most of a thousand years. The river Seine runs through it from east "
        "to west, past the islands on which the city began, and thirty-seven bridges cross the water within its limits."
    )
    found = lane_ablations(smollm2)
    names = ("slowest quarter stopped", "fastest eighth stopped")
    sweep = rope_sweep(smollm2, [text], {"same": 100_000.0} | {name: found[name] for name in names}, patterns=1)
    assert np.array_equal(sweep.loss.sel(table="same"), sweep.loss.sel(table=TRAINED))
    assert abs(float(sweep.cost.sel(table=names[0]))) < 0.05
    assert float(sweep.cost.sel(table=names[1])) > 0.5
    strongest = sweep.previous_token.sel(table=TRAINED).max(), sweep.previous_token.sel(table=names[1]).max()
    assert strongest[0] > 2 * strongest[1]


# -- restore, cancel, refusals --------------------------------------------------------------------


def test_the_model_is_as_before_and_progress_counts_every_reading(tiny):
    before, steps = buffers(tiny.module), []
    rope_sweep(tiny, IDS, [50.0, 1e6], progress=steps.append)
    assert_same(tiny.module, before)
    assert steps[-1] == Step(63, 63, "tokens", "texts, rotary tables")
    assert [step.done for step in steps] == [12, 24, 36, 45, 54, 63]


def test_cancel_leaves_the_model_as_it_was(tiny):
    before, token, calls = buffers(tiny.module), CancelToken(), []

    def check() -> None:
        calls.append(tiny.edits)
        if len(calls) == 5:
            token.cancel()
        token.check()

    with pytest.raises(Cancelled):
        rope_sweep(tiny, IDS, [50.0, 1e6], check=check)
    assert len(calls) == 5
    assert any(calls[-1])  # it was stopped in the middle of an edited run
    assert tiny.edits == ()
    assert_same(tiny.module, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tables": []}, "The tables are none"),
        ({"tables": [50.0, 50]}, "each with a name of its own"),
        ({"tables": {TRAINED: 50.0}}, "each with a name of its own"),
        ({"tables": [50.0], "bins": (0, 4, 4)}, "The bins are"),
        ({"tables": [50.0], "bins": (0, 11, 12)}, "beginning before 11"),
        ({"corpus": [[4]], "tables": [50.0]}, "no window of two tokens"),
        ({"tables": [0.5]}, "base"),
        ({"tables": [np.ones(3, bool)]}, "lanes"),
    ],
)
def test_refusals_say_what_was_needed(tiny, options, message):
    before = buffers(tiny.module)
    with pytest.raises(InputError, match=message):
        rope_sweep(tiny, **{"corpus": IDS, **options})
    assert_same(tiny.module, before)


def test_a_model_without_rotary_embeddings_is_refused():
    with pytest.raises(UnsupportedModelError):
        rope_sweep(lens.load(build("gpt2"), word_tokenizer()), IDS, [50.0])
