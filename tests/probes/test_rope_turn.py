"""One head before and after a turn: equal to the running model's patterns, summed up as by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.models import edits
from lens.models.heads import head_states
from lens.models.rotary import rotaries
from lens.probes.rope_turn import SETTINGS, striking_head, turned_head
from tests.models.families import build

IDS = [5, 9, 17, 5, 9, 44, 5, 21]


def turned(model, base: float, ids=IDS):
    with edits.rope_base(model, base):
        run = model.run(ids, attention=True)
        return run, {block: one for one in rotaries(model) for block in one.blocks}


def found(model, block: int, head: int, base: float = 40.0) -> xr.Dataset:
    run, tables = turned(model, base)
    states = head_states(model, IDS)[block]
    return turned_head(model.run(IDS, attention=True), run, states, head, tables[block].theta, tables[block].attention_factor)


def test_patterns_are_those_of_the_runs_and_the_third_is_the_one_layers(tiny):
    dataset = found(tiny, 2, 1)
    run, _ = turned(tiny, 40.0)
    assert dataset.setting.to_numpy().tolist() == list(SETTINGS)
    assert np.array_equal(dataset.attention[0], tiny.run(IDS, attention=True).attention[2, 1])
    assert np.array_equal(dataset.attention[1], run.attention[2, 1])
    assert (dataset.attrs["block"], dataset.attrs["head"]) == (2, 1)
    assert np.abs(dataset.attention[1] - dataset.attention[2]).max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "qwen3", "neox-wide", "gptj", "gemma2"])
def test_one_layer_alone_is_a_model_in_which_that_layer_alone_was_turned(family):
    """In the first block nothing comes before the turn, so that the whole model and the one layer agree."""
    model = lens.load(build(family))
    dataset = found(model, 0, 1)
    assert dataset.attention[2].to_numpy() == pytest.approx(dataset.attention[1].to_numpy(), abs=2e-5)
    assert float(dataset.moved[1]) > 1e-3


def test_an_unchanged_table_moves_nothing(tiny):
    dataset = found(tiny, 1, 2, base=10_000.0)
    assert float(dataset.moved[1]) == 0
    assert float(dataset.moved[2]) < 1e-5


def test_summaries_are_as_by_hand(tiny):
    dataset = found(tiny, 1, 0)
    seen = dataset.attention.to_numpy().astype(float)
    size = len(IDS)
    copies = {3: [1], 4: [2], 6: [1, 4]}  # query to the keys after earlier copies of its token
    for n in range(3):
        rows = range(1, size)
        expected = {
            "moved": np.mean([0.5 * sum(abs(seen[n, q, k] - seen[0, q, k]) for k in range(size)) for q in rows]),
            "attended_distance": np.mean([sum(seen[n, q, k] * (q - k) for k in range(q)) for q in rows]),
            "previous_token": np.mean([seen[n, q, q - 1] for q in rows]),
            "first_token": np.mean([seen[n, q, 0] for q in rows]),
            "prefix_matching": np.mean([sum(seen[n, q, k] for k in keys) for q, keys in copies.items()]),
        }
        assert {name: float(dataset[name][n]) for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_a_text_without_repeats_has_no_prefix_to_match(tiny):
    ids = [5, 9, 17, 21]
    run, tables = turned(tiny, 40.0, ids)
    trained = tiny.run(ids, attention=True)
    dataset = turned_head(trained, run, head_states(tiny, ids)[0], 0, tables[0].theta)
    assert np.isnan(dataset.prefix_matching).all()
    change = (run.attention - trained.attention).abs().sum((-2, -1))
    assert striking_head(trained, run) == divmod(int(change.argmax()), change.shape[1])


def test_the_first_head_to_look_at_follows_repeats_most(tiny):
    trained, (run, _) = tiny.run(IDS, attention=True), turned(tiny, 40.0)
    score = sum(trained.attention[:, :, q, k] for q, k in [(3, 1), (4, 2), (6, 1), (6, 4)])
    assert striking_head(trained, run) == divmod(int(score.argmax()), score.shape[1])


def test_the_result_survives_a_file(tiny, tmp_path: Path):
    dataset = found(tiny, 0, 0)
    dataset.to_netcdf(tmp_path / "head.nc")
    with xr.open_dataset(tmp_path / "head.nc") as again:
        xr.testing.assert_identical(again.load(), dataset)


def test_refusals(tiny):
    run, tables = turned(tiny, 40.0)
    trained, states, theta = tiny.run(IDS, attention=True), head_states(tiny, IDS)[0], tables[0].theta
    with pytest.raises(InputError, match="cannot be compared"):
        turned_head(tiny.run(IDS), run, states, 0, theta)
    with pytest.raises(InputError, match="cannot be compared"):
        turned_head(tiny.run(IDS[:-1], attention=True), run, states, 0, theta)
    with pytest.raises(InputError, match="The head is 4"):
        turned_head(trained, run, states, 4, theta)
