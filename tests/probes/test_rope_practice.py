"""The table of released models: every column is computed, and stands here as it was published or worked out by hand before."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
import xarray as xr

import lens
from lens.base.errors import InputError, UnsupportedModelError
from lens.models import edits
from lens.models.frequencies import rope_table, table_of
from lens.probes.rope_practice import rope_practice, rotary_settings, table_of_model
from tests.models.families import build

# model: φ, cos φ, DC, its verdict, depth, its verdict, wall, slow lanes, lanes, first negative offset (None: beyond the context)
TABLE = """
Pythia-70M | 0.648 | +0.798 | 6449 | ok | 15685 | no | ok | 2 | 8 | 91
LLaMA-1 7B | 0.236 | +0.972 | 6449 | ok | 36181 | no | ok | 23 | 64 | 1707
Llama-2 7B | 0.473 | +0.890 | 12898 | no | 72361 | no | ok | 18 | 64 | 1707
Llama-2 70B | 0.473 | +0.890 | 12898 | no | 114395 | no | ok | 18 | 64 | 1707
Llama-3 8B | 0.020 | +1.000 | 25797 | ok | 144722 | ok | ok | 29 | 64 | None
Llama-3.1 8B | 0.040 | +0.999 | 412747 | ok | 2.32e6 | ok | ok | 25 | 64 | 85133
Llama-3.1 8B, scaling off | 0.322 | +0.949 | 412747 | ok | 2.32e6 | no | ok | 15 | 64 | 18438
Llama-3-8B-Gradient-1048k | 0.001 | +1.000 | 3.3e6 | ok | 1.85e7 | ok | no | 28 | 64 | None
Mistral-7B v0.1, window 4096 | 0.473 | +0.890 | 12898 | no | 72361 | no | ok | 18 | 64 | 1707
Mistral-7B v0.1, nominal 32k | 3.784 | -0.801 | 103187 | no | 578889 | no | ok | 4 | 64 | 1707
Mistral-7B v0.3 | 0.041 | +0.999 | 103187 | ok | 578889 | ok | ok | 24 | 64 | 27115
DeepSeek-Coder 6.7B | 0.049 | +0.999 | 51593 | ok | 289445 | ok | ok | 27 | 64 | None
DeepSeek-V2 | 0.546 | +0.854 | 515933 | no | 3.96e6 | no | ok | 9 | 32 | 4119
DeepSeek-V3 / R1 | 0.546 | +0.854 | 515933 | no | 4e6 | no | ok | 9 | 32 | 4119
SmolLM-135M | 0.273 | +0.963 | 6449 | ok | 35032 | no | ok | 11 | 32 | 725
SmolLM2-135M | 0.117 | +0.993 | 25797 | ok | 140129 | no | ok | 12 | 32 | 3616
Qwen2.5-7B | 0.041 | +0.999 | 103187 | ok | 541522 | ok | ok | 24 | 64 | 27115
Qwen2.5-72B, YaRN 4 | 0.041 | +0.999 | 412747 | ok | 3.66e6 | ok | ok | 24 | 64 | 66234
Qwen2.5-7B-1M | 0.130 | +0.992 | 3.18e6 | ok | 1.67e7 | no | no | 16 | 64 | 144660
GLM-4-9B-chat-1M | 0.019 | +1.000 | 3.3e6 | ok | 2.07e7 | ok | no | 11 | 32 | 84531
gpt-oss-120b, full attention | 0.040 | +0.999 | 412747 | ok | 2.46e6 | ok | ok | 14 | 32 | 64255
Gemma-3, global layers | 0.146 | +0.989 | 412747 | ok | 2.09e6 | no | ok | 35 | 128 | 71627
"""
ROWS = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]


@pytest.fixture(scope="module")
def practice() -> xr.Dataset:
    return rope_practice()


def as_printed(value: float, printed: str) -> str:
    """A value with the digits of a printed one."""
    if "e" not in printed:
        return f"{value:.0f}"
    mantissa = printed.split("e")[0]
    digits, power = f"{value:.{len(mantissa.partition('.')[2])}e}".split("e")
    return f"{digits}e{int(power)}"


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_column_of_every_model(practice, row):
    model, phase, cosine, stability, stable, depth, deep, wall, slow, lanes, negative = row
    found = practice.sel(model=model)
    required, met = found.required.sel, {True: "ok", False: "no"}
    assert (f"{float(found.slowest_phase):.3f}", f"{float(found.slowest_cosine):+.3f}") == (phase, cosine)
    assert as_printed(float(required(theory="dc_stability")), stability) == stability
    assert as_printed(float(required(theory="depth")), depth) == depth
    verdicts = [met[bool(found.met.sel(theory=theory))] for theory in ("aliasing", "dc_stability", "depth", "precision_wall")]
    assert verdicts == ["ok", stable, deep, wall]
    assert (int(found.slow_lanes), int(found.lanes)) == (int(slow), int(lanes))
    assert (None if np.isnan(found.first_negative) else int(found.first_negative)) == (
        None if negative == "None" else int(negative)
    )


def test_the_table_holds_these_models_and_no_others(practice):
    assert practice.model.to_numpy().tolist() == [row[0] for row in ROWS]


def test_how_often_each_theory_fails_in_practice(practice):
    fails = (~practice.met).sum("model")
    assert {str(theory): int(fails.sel(theory=theory)) for theory in practice.theory.to_numpy()} == {
        "aliasing": 0, "dc_stability": 6, "depth": 13, "precision_wall": 3, "similar_beats_random": 19,
        "similar_beats_random_safe": 20, "slow_lane_share": 2,
    }  # fmt: skip
    assert dict(zip(practice.hypothesis.to_numpy(), practice.used_though_not_met.to_numpy(), strict=True)) == {
        "aliasing": 0, "DC stability": 5, "depth": 11, "precision wall": 3, "similar beats random": 17,
        "similar beats random, safely": 18, "slow-lane share": 0,
    }  # fmt: skip
    assert practice.met_though_unused.to_numpy().tolist() == [2, 1, 0, 2, 0, 0, 0]


def test_the_slow_lanes_of_models_in_use(practice):
    """From a quarter to 46 %; both settings that are not offered lie below."""
    used = practice.slow_share.to_numpy()[practice.supported.to_numpy()]
    assert len(used) == 20
    assert used.min() == 0.25
    assert 0.45 < used.max() <= 0.46
    assert sorted(practice.slow_share.to_numpy()[~practice.supported.to_numpy()].round(2)) == [0.06, 0.23]


def test_every_setting_has_its_source(practice):
    assert all(str(source) for source in practice.source.to_numpy())
    record = json.loads(files("lens.records").joinpath("rotary-settings.json").read_text(encoding="utf-8"))
    assert len(record["models"]) == 22


@pytest.mark.parametrize(
    ("model", "config", "layer_type"),
    [("gpt-oss-120b, full attention", "GptOssConfig", None), ("Gemma-3, global layers", "Gemma3TextConfig", "full_attention")],
)
def test_settings_that_are_defaults_of_the_library(practice, model, config, layer_type):
    import transformers

    settings = getattr(transformers, config)()
    table, found = table_of(settings, layer_type), practice.sel(model=model)
    assert table_of_model(model).theta.tolist() == table.theta.tolist()
    assert (int(found.layers), int(found.context)) == (settings.num_hidden_layers, settings.max_position_embeddings)


def test_smollm2_is_the_model_that_the_package_fetches(practice, smollm2):
    found, table = practice.sel(model="SmolLM2-135M"), table_of(smollm2.module.config)
    assert (float(found.base), int(found.width), int(found.layers)) == (table.base, table.width, len(smollm2.anatomy.blocks))
    assert int(found.context) == smollm2.context


@pytest.mark.parametrize("lane", ["stated", "exact"])
def test_a_strictness_asks_for_its_cosine(practice, lane):
    """With the exact lane a base is what DC stability asks for just where the cosine at the end of the context is ε."""
    found = rope_practice(0.9, lane=lane)
    stable = found.met.sel(theory="dc_stability").to_numpy()
    cosine_holds = (found.slowest_cosine.to_numpy() >= 0.9) & (found.slowest_phase.to_numpy() < np.pi)
    assert (stable == cosine_holds).all() == (lane == "exact")
    assert (found.required.sel(theory="dc_stability") <= rope_practice(0.95, lane=lane).required.sel(theory="dc_stability")).all()


def test_the_exact_lane_of_an_unscaled_table_is_its_base(practice):
    exact = rope_practice(lane="exact")
    unscaled = exact.isel(model=exact.factor.to_numpy() == 1)
    assert unscaled.effective_base.to_numpy() == pytest.approx(unscaled.base.to_numpy(), rel=1e-9)
    deepseek = exact.sel(model="DeepSeek-V2")
    slowest = rope_table("default", float(deepseek.effective_base), 64).theta[-1]
    assert slowest == pytest.approx(table_of_model("DeepSeek-V2").theta[-1], rel=1e-12)
    assert float(practice.sel(model="DeepSeek-V2").effective_base) == 4e5


def test_the_table_survives_a_file(practice, tmp_path):
    practice.to_netcdf(tmp_path / "practice.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "practice.nc", engine="h5netcdf") as read:
        xr.testing.assert_identical(read.load(), practice)


def test_an_open_model_stands_beside_the_released_ones(smollm2):
    found = rope_practice(models=[smollm2])
    own, released = found.isel(model=-1), found.sel(model="SmolLM2-135M")
    assert str(own.model.item()) == smollm2.name
    for name in ("base", "width", "context", "layers", "effective_base", "required", "met", "slow_lanes", "first_negative"):
        assert (own[name].to_numpy() == released[name].to_numpy()).all()
    assert own.source.item() == f"configuration of {smollm2.name}"
    xr.testing.assert_identical(
        found.isel(model=slice(22))[["required", "met", "base"]], rope_practice()[["required", "met", "base"]]
    )


def test_an_edit_of_an_open_model_moves_it(tokenizer):
    model = lens.load(build("llama"), tokenizer)
    before = rope_practice(models=[model]).isel(model=-1)
    with edits.rope_base(model, 5e5):
        after = rope_practice(models=[model]).isel(model=-1)
    assert float(after.effective_base) == pytest.approx(5e5, rel=1e-5)
    assert float(before.effective_base) == 1e4
    assert float(after.slowest_phase) < float(before.slowest_phase)


def test_every_table_of_a_model_has_its_own_reach(tokenizer):
    model = lens.load(build("gemma3-both"), tokenizer)
    rows = {row.facts["model"].split(", ")[1]: row.facts for row in rotary_settings(model)}
    assert rows["sliding_attention"]["context"] == 4
    assert rows["full_attention"]["context"] == model.context
    (mistral,) = rotary_settings(lens.load(build("mistral"), tokenizer))
    assert mistral.facts["context"] == 4


def test_models_without_rotary_embeddings_and_two_of_one_name_are_refused(tokenizer):
    with pytest.raises(UnsupportedModelError, match="no rotary position embeddings"):
        rope_practice(models=[lens.load(build("gpt2"), tokenizer)])
    (row,) = rotary_settings(lens.load(build("llama"), tokenizer))
    with pytest.raises(InputError, match="Two models are called"):
        rope_practice(models=[row, row])
