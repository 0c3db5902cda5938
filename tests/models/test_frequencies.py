"""Frequency tables: the published numbers, the identities between kinds, and transformers' own tables."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.frequencies import KINDS, RopeTable, rope_table, table_of
from lens.models.frequency_kinds import yarn_range

YARN: dict[str, Any] = {"factor": 16.0, "original_max_position_embeddings": 4096}
LLAMA3: dict[str, Any] = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


def longrope(width: int, **options: Any) -> dict[str, Any]:
    lanes = np.arange(width // 2)
    factors = {"short_factor": (1 + lanes / 100).tolist(), "long_factor": (1 + lanes / 3).tolist()}
    return {**factors, "original_max_position_embeddings": 4096, **options}


def treatments(table: RopeTable) -> dict[str, int]:
    return dict(Counter(table.treatment))


# -- exact values ---------------------------------------------------------------------------------


def test_the_slowest_lane_is_not_one_over_the_base():
    table = rope_table("default", 1e4, 128)
    assert table.theta[63] == pytest.approx(1.1547819846894582e-4, rel=1e-15)
    assert table.wavelength[63] == pytest.approx(54410.143, abs=5e-4)
    assert table.theta[0] == 1
    assert table.effective_base == pytest.approx(1e4, rel=1e-13)


@pytest.mark.parametrize(
    ("base", "width", "slowest"), [(1e4, 64, 7498.94), (1e4, 16, 3162.28), (5e5, 128, 407309), (1e6, 128, 805842)]
)
def test_slowest_period_of_the_default(base: float, width: int, slowest: float):
    assert 1 / rope_table("default", base, width).theta[-1] == pytest.approx(slowest, rel=1e-6)
    assert 1 / rope_table("default", base, width).theta[-1] == pytest.approx(base ** (1 - 2 / width), rel=1e-14)


def test_ntk_divides_the_slowest_lane_by_the_factor_and_leaves_the_fastest():
    plain, table = rope_table("default", 1e4, 128), rope_table("ntk", 1e4, 128, factor=8.0)
    assert table.effective_base == pytest.approx(82684.62264, abs=5e-6)
    assert plain.theta[63] / table.theta[63] == pytest.approx(8.0, rel=1e-14)
    assert table.theta[0] == 1
    assert treatments(table) == {"unchanged": 1, "blended": 62, "divided": 1}


def test_dynamic_grows_with_the_running_length_only():
    options = {"factor": 2.0, "original_max_position_embeddings": 4096}
    table = rope_table("dynamic", 1e4, 128, length=8192, **options)
    assert table.effective_base == pytest.approx(30527.73675, abs=5e-6)
    assert table.effective_base == pytest.approx(1e4 * 3 ** (128 / 126), rel=1e-12)
    for length in (None, 1, 4096):
        np.testing.assert_array_equal(
            rope_table("dynamic", 1e4, 128, length=length, **options).theta, rope_table("default", 1e4, 128).theta
        )


def test_yarn_of_sixteen():
    table, plain = rope_table("yarn", 1e4, 128, **YARN), rope_table("default", 1e4, 128)
    assert yarn_range(1e4, 128, 4096, truncate=False) == pytest.approx((20.94448, 45.02688), abs=5e-6)
    assert yarn_range(1e4, 128, 4096) == (20, 46)
    assert treatments(table) == {"unchanged": 21, "blended": 25, "divided": 18}
    np.testing.assert_array_equal(table.theta[:21], plain.theta[:21])
    np.testing.assert_array_equal(table.theta[46:], plain.theta[46:] / 16)
    assert table.attention_factor == pytest.approx(1.27725887222, abs=5e-12)


def test_yarn_of_deepseek_and_of_gpt_oss():
    table = rope_table("yarn", 1e4, 64, factor=40.0, original_max_position_embeddings=4096)
    assert yarn_range(1e4, 64, 4096) == (10, 23)
    assert table.attention_factor == pytest.approx(1.36888794541, abs=5e-12)
    assert table.attention_factor**2 == pytest.approx(1.8738542071, abs=5e-11)
    assert 1 / table.theta[-1] == pytest.approx(299957.68, abs=5e-3)
    assert yarn_range(150000, 64, 4096, truncate=False) == pytest.approx((8.0927791, 17.3980245), abs=5e-8)
    open_weights = rope_table("yarn", 150000, 64, factor=32.0, original_max_position_embeddings=4096, truncate=False)
    assert open_weights.attention_factor == pytest.approx(1.34657359028, abs=5e-12)
    assert treatments(open_weights) == {"unchanged": 9, "blended": 9, "divided": 14}


def test_yarn_scales_attention_as_told():
    options = {"factor": 40.0, "original_max_position_embeddings": 4096}
    assert rope_table("yarn", 1e4, 64, mscale=1.0, mscale_all_dim=1.0, **options).attention_factor == 1
    ratio = rope_table("yarn", 1e4, 64, mscale=0.707, mscale_all_dim=1.0, **options).attention_factor
    assert ratio == pytest.approx((0.0707 * math.log(40) + 1) / (0.1 * math.log(40) + 1), rel=1e-15)
    assert rope_table("yarn", 1e4, 64, mscale=0.707, attention_factor=0.5, **options).attention_factor == 0.5


@pytest.mark.parametrize(
    ("width", "factor", "lanes"),
    [(128, 8.0, {"unchanged": 29, "blended": 6, "divided": 29}), (64, 32.0, {"unchanged": 15, "blended": 3, "divided": 14})],
)
def test_llama3_leaves_blends_and_divides(width: int, factor: float, lanes: dict[str, int]):
    table, plain = rope_table("llama3", 5e5, width, **{**LLAMA3, "factor": factor}), rope_table("default", 5e5, width)
    assert treatments(table) == lanes
    treatment = np.array(table.treatment)
    np.testing.assert_array_equal(table.theta[treatment == "unchanged"], plain.theta[treatment == "unchanged"])
    np.testing.assert_allclose(table.theta[treatment == "divided"] * factor, plain.theta[treatment == "divided"], rtol=1e-15)
    if width == 128:
        assert 1 / table.theta[-1] == pytest.approx(3258469, abs=0.5)


def test_longrope_chooses_its_factors_by_the_length():
    plain = rope_table("default", 1e4, 64)
    options = longrope(64, factor=32.0)
    short, long = (rope_table("longrope", 1e4, 64, length=length, **options) for length in (4096, 4097))
    np.testing.assert_array_equal(short.theta, plain.theta / np.array(options["short_factor"]))
    np.testing.assert_array_equal(long.theta, plain.theta / np.array(options["long_factor"]))
    assert short.attention_factor == long.attention_factor == pytest.approx(1.19023807142, abs=5e-12)
    assert rope_table("longrope", 1e4, 64, **longrope(64, factor=1.0)).attention_factor == 1
    assert rope_table("longrope", 1e4, 64, **longrope(64, factor=32.0, attention_factor=1.5)).attention_factor == 1.5


def test_partial_and_proportional_rotary_are_different():
    """Partial rotary shrinks the denominator of the exponents, proportional rotary stops the slow lanes."""
    partial, proportional = rope_table("default", 1e4, 32), rope_table("proportional", 1e4, 128, partial_rotary_factor=0.25)
    assert len(partial.theta) == 16
    assert 1 / partial.theta[-1] == pytest.approx(1e4 ** (1 - 2 / 32), rel=1e-14)
    assert treatments(proportional) == {"unchanged": 16, "stopped": 48}
    np.testing.assert_array_equal(proportional.theta[:16], rope_table("default", 1e4, 128).theta[:16])
    assert not proportional.theta[16:].any()
    assert np.isinf(proportional.wavelength[16:]).all()


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn", "llama3", "proportional", "dynamic"])
def test_a_factor_of_one_is_the_default(kind: str):
    options = {"linear": {}, "ntk": {}, "yarn": YARN, "llama3": LLAMA3, "proportional": {}, "dynamic": YARN}[kind]
    table, plain = rope_table(kind, 5e5, 128, **{**options, "factor": 1.0}), rope_table("default", 5e5, 128)
    np.testing.assert_array_equal(table.theta, plain.theta)
    assert table.attention_factor == 1
    assert set(table.treatment) == {"unchanged"}


def test_an_infinite_base_leaves_only_the_first_lane_turning():
    np.testing.assert_array_equal(rope_table("default", math.inf, 8).theta, [1, 0, 0, 0])


def test_an_explicit_table_is_as_given():
    table = rope_table("explicit", theta=[0.5, 0.0, 0.25], attention_factor=2.0)
    np.testing.assert_array_equal(table.theta, [0.5, 0, 0.25])
    assert (table.width, table.attention_factor, table.treatment) == (6, 2.0, ("given", "stopped", "given"))
    with pytest.raises(ValueError, match="read-only"):
        table.theta[0] = 1


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("ntk-aware", {}, "The kind of rotary table is 'ntk-aware'"),
        ("linear", {}, "'linear' was not given factor"),
        ("default", {"factor": 2.0}, "'default' was given factor"),
        ("yarn", {"factor": 2.0, "betafast": 3}, "was given betafast and was not given original_max_position_embeddings"),
        ("longrope", longrope(64), "neither factor nor attention_factor"),
        ("longrope", longrope(32, factor=2.0), r"short_factor has the shape \(16,\)"),
        ("llama3", {**LLAMA3, "low_freq_factor": 4.0}, "high_freq_factor is 4"),
        ("linear", {"factor": 0.0}, "factor is 0"),
        ("linear", {"factor": math.inf}, "factor is inf"),
        ("default", {"base": 1.0}, "base is 1"),
        ("default", {"base": math.nan}, "base is nan"),
        ("ntk", {"factor": 2.0, "width": 2}, "width is 2"),
        ("explicit", {"theta": [[1.0]]}, "theta has the shape"),
        ("explicit", {"theta": [math.nan]}, "theta has the shape"),
    ],
)
def test_what_cannot_be_meant_is_refused(kind: str, options: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        rope_table(kind, **options)


# -- transformers' own tables ---------------------------------------------------------------------


_FAMILIES = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma4_text", "olmo2", "olmo3",
    "phi", "phi3", "stablelm", "cohere", "cohere2", "granite", "gpt_neox", "falcon", "smollm3", "glm", "glm4", "gpt_oss",
    "deepseek_v2", "deepseek_v3", "nemotron", "persimmon", "exaone4", "mimo_v2_flash", "minimax",
)  # fmt: skip
_BASES = (1e5, 5e5, 1e6, 1e7, 1e8, 2804339835.0)
_SCALED: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
    {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4},
    {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6},
    {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096, "rope_theta": 1e4},
    {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3},
    {"rope_type": "longrope", "rope_theta": 1e4, "factor": 32.0, **longrope(128)},
]
# Configuration classes with their own defaults, which are settings of real models, and settings of real models on Llama's.
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in _FAMILIES},
    **{f"base-{base:g}": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": base}}) for base in _BASES},
    **{
        f"{settings['rope_type']}-{settings['factor']:g}": (
            "llama",
            {"max_position_embeddings": 131072, "rope_parameters": settings},
        )
        for settings in _SCALED
    },
}
_WIDE = {"hidden_size": 4096, "num_attention_heads": 32}  # heads of 128


def configuration(name: str) -> Any:
    kind, options = CONFIGURATIONS[name]
    return AutoConfig.for_model(kind, **({**_WIDE, **options} if options else {}))


def steps(found: torch.Tensor, expected: np.ndarray) -> int:
    """How many float32 numbers two tables are apart at most: distance in units in the last place."""
    ours = expected.astype(np.float32).view(np.int32).astype(np.int64)
    return int(np.abs(found.numpy().view(np.int32) - ours).max())


def own_table(config: Any, layer_type: str | None = None, length: int | None = None) -> tuple[torch.Tensor, float]:
    """Transformers' inverse frequencies and attention factor for a configuration."""
    settings = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    named = {"layer_type": layer_type} if layer_type else {}
    if settings["rope_type"] != "default":
        return ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, torch.device("cpu"), seq_len=length, **named)
    module = importlib.import_module(AutoModelForCausalLM._model_mapping[type(config)].__module__)
    found = [part for name, part in vars(module).items() if name.endswith("RotaryEmbedding") and "Vision" not in name]
    rotary = found[-1] if len(found) == 1 else next(part for part in found if "Text" in part.__name__)
    heterogeneous = getattr(config, "is_heterogeneous", False)
    return rotary.compute_default_rope_parameters(config.per_layer_config[layer_type] if heterogeneous else config, **named)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_tables_are_transformers_own(name: str):
    """To one unit in the last place of float32 for the default and linear kinds, where exponents 2i/r are exact; else to four.

    Transformers rounds exponents to float32, which for a width that is no power of two moves b^x by up to ln(b)/2 units.
    """
    config = configuration(name)
    types = [key for key, value in config.rope_parameters.items() if isinstance(value, dict)] or [None]
    for layer_type in types:
        for length in (None, 1_000_000):
            found, attention_factor = own_table(config, layer_type, length)
            table = table_of(config, layer_type, length)
            exact = table.kind in ("default", "linear", "proportional") and table.width & (table.width - 1) == 0
            assert len(found) == len(table.theta)
            assert steps(found, table.theta) <= (1 if exact else 4)
            assert attention_factor == pytest.approx(table.attention_factor, rel=1e-15)


def test_every_kind_of_transformers_is_known():
    assert set(ROPE_INIT_FUNCTIONS) <= set(KINDS)


# -- where configurations keep their settings -----------------------------------------------------


def test_settings_of_old_configuration_files_mean_the_same():
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}, "hidden_size": 64, "num_attention_heads": 4}
    table = table_of(old)
    assert (table.kind, table.base, table.width) == ("linear", 5e5, 16)
    np.testing.assert_array_equal(table.theta, rope_table("linear", 5e5, 16, factor=4.0).theta)
    neox = table_of({"rotary_emb_base": 1e4, "rotary_pct": 0.25, "hidden_size": 512, "num_attention_heads": 8})
    assert (neox.base, neox.width) == (1e4, 16)
    gptj = table_of({"rotary_dim": 64, "n_embd": 4096, "n_head": 16, "n_positions": 2048})
    assert (gptj.base, gptj.width) == (1e4, 64)


def test_settings_of_gemma_3_in_the_old_form():
    old = {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "head_dim": 256,
    }
    whole, window = table_of(old, "full_attention"), table_of(old, "sliding_attention")
    assert (whole.kind, whole.base, window.kind, window.base) == ("linear", 1e6, "default", 1e4)
    new = AutoConfig.for_model("gemma3_text", **old)
    for layer_type, table in (("full_attention", whole), ("sliding_attention", window)):
        np.testing.assert_array_equal(table_of(new, layer_type).theta, table.theta)


def test_the_original_length_may_stand_outside_and_the_factor_may_be_missing():
    outside = {
        "rope_theta": 1e4, "head_dim": 64, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "rope_scaling": {k: v for k, v in longrope(64).items() if k != "original_max_position_embeddings"} | {"type": "longrope"},
    }  # fmt: skip
    assert table_of(outside).attention_factor == pytest.approx(1.19023807142, abs=5e-12)
    assert table_of(outside, length=5000).theta[-1] < table_of(outside, length=4000).theta[-1]


def test_a_fixed_alpha_is_ntk():
    config = AutoConfig.for_model(
        "hunyuan_v1_dense", head_dim=128, rope_parameters={"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0}
    )
    table = table_of(config)
    assert (table.kind, table.parameters["factor"]) == ("ntk", 1000.0)


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom"])
def test_a_configuration_without_rotary_settings_is_refused(name: str):
    with pytest.raises(UnsupportedModelError, match="no rotary settings"):
        table_of(AutoConfig.for_model(name))


def test_alibi_means_no_rotary_settings():
    with pytest.raises(UnsupportedModelError, match="no rotary settings"):
        table_of(AutoConfig.for_model("falcon", alibi=True))


def test_layer_types_are_named_where_there_are_several():
    several, one = AutoConfig.for_model("gemma3_text"), AutoConfig.for_model("llama")
    with pytest.raises(InputError, match="no layer type was named"):
        table_of(several)
    with pytest.raises(InputError, match="'chunked_attention'.*full_attention"):
        table_of(several, "chunked_attention")
    with pytest.raises(InputError, match="all layers share one table"):
        table_of(one, "full_attention")


def test_an_unknown_kind_in_a_configuration_is_refused():
    with pytest.raises(UnsupportedModelError, match="'axial'"):
        table_of({"rope_scaling": {"rope_type": "axial"}, "rope_theta": 1e4, "head_dim": 64})
