"""Required bases of every theory, against exact values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.models.frequencies import rope_table
from lens.probes.rope_bounds import THEORIES, allows, is_met, lanes_in_context, rope_bounds, slow_share


def value(name: str, *arguments, **settings) -> float:
    return float(rope_bounds(*arguments, **settings)[name])


def test_the_required_bases_of_4096_tokens_and_32_layers():
    found = rope_bounds(4096, 32)
    assert float(found.dc_stability) == pytest.approx(12_898.3, abs=0.05)
    assert float(found.depth) == pytest.approx(72_361.2, abs=0.05)
    assert float(found.aliasing) == pytest.approx(4096 / (2 * math.pi))
    assert float(found.precision_wall) == 2**23
    assert float(found.slow_lane_share) == pytest.approx(5.65e3, rel=1e-3)
    assert math.acos(0.95) == pytest.approx(0.3175604292915, abs=5e-14)
    assert value("dc_stability", 1) == pytest.approx(3.1490069535, abs=5e-11)
    assert value("dc_stability", 1) / value("aliasing", 1) == pytest.approx(19.79, abs=5e-3)


def test_the_longest_context_without_aliasing():
    assert value("aliasing", 62_831, width=16) < 1e4 < value("aliasing", 62_832, width=16)


@pytest.mark.parametrize(
    ("layers", "per_token"), [(6, 7.6586), (12, 10.8232), (32, 17.6663), (61, 24.3882), (80, 27.9284), (126, 35.0485)]
)
def test_the_base_per_token_grows_as_the_root_of_the_depth(layers, per_token):
    assert value("depth", 1, layers) == pytest.approx(per_token, abs=5e-5)


def test_the_limit_of_many_layers():
    assert value("depth", 1, 1_000_000) / 1000 == pytest.approx(math.sqrt(1 / (2 * math.log(1 / 0.95))), rel=1e-6)
    assert value("depth", 1, 1_000_000) / 1000 == pytest.approx(3.122, abs=5e-4)


def test_one_layer_is_dc_stability():
    assert value("depth", 4096, 1) == value("dc_stability", 4096)


def test_the_required_base_grows_with_depth_strictness_and_context():
    depths = [value("depth", 4096, layers) for layers in (1, 2, 6, 32, 126)]
    strictness = [value("dc_stability", epsilon=epsilon) for epsilon in (0.5, 0.8, 0.95, 0.999)]
    assert depths == sorted(depths)
    assert strictness == sorted(strictness)
    found = rope_bounds([256, 1024, 4096, 65_536], 32)
    for name, theory in THEORIES.items():
        steps = np.diff(found[name])
        assert (steps > 0).all() if theory.is_lower else (steps == 0).all()


@pytest.mark.parametrize(("dtype", "wall"), [("float32", 8_388_608), ("float16", 1024), ("bfloat16", 128), ("float64", 2**52)])
def test_the_wall_is_the_inverse_of_the_machine_epsilon(dtype, wall):
    assert value("precision_wall", dtype=dtype) == wall


@pytest.mark.parametrize("width", [16, 64, 128])
def test_the_exact_lane_asks_for_a_power_of_the_stated_base(width):
    stated, exact = rope_bounds(4096, width=width), rope_bounds(4096, width=width, lane="exact")
    for name in ("aliasing", "dc_stability", "depth", "precision_wall"):
        assert float(exact[name]) == pytest.approx(float(stated[name]) ** (width / (width - 2)), rel=1e-12)
    assert float(exact.similar_beats_random) == float(stated.similar_beats_random)
    # That base is where the slowest lane's cosine at the end of the context is ε.
    turn = 4096 * rope_table("default", float(exact.dc_stability), width).theta[-1]
    assert math.cos(turn) == pytest.approx(0.95, abs=1e-12)


def test_the_theories_change_order_between_two_contexts():
    short, long = rope_bounds(4096, 32), rope_bounds(131_072, 32)
    assert float(short.dc_stability) < float(short.similar_beats_random) < float(short.depth)
    assert float(long.dc_stability) < float(long.depth) < float(long.similar_beats_random)
    assert float(long.depth) == pytest.approx(2.32e6, rel=2e-3)
    assert float(long.slow_lane_share) == pytest.approx(5.74e5, rel=1e-3)
    assert value("slow_lane_share", 2**20) == pytest.approx(9.19e6, rel=1e-3)


def test_a_million_tokens_leave_room_for_six_layers_only():
    assert value("depth", 2**20, 6) == pytest.approx(8.03e6, rel=1e-3)
    assert value("depth", 2**20, 7) == pytest.approx(8.67e6, rel=1e-3)
    assert value("depth", 2**20, 6) < value("precision_wall") < value("depth", 2**20, 7)


def test_a_given_base_is_held_against_every_theory():
    found = rope_bounds(4096, 32, 128, 1e4)
    met = {name: found[name].attrs["met"] for name in THEORIES}
    assert met == {
        "aliasing": "yes", "dc_stability": "no", "depth": "no", "precision_wall": "yes", "similar_beats_random": "no",
        "similar_beats_random_safe": "no", "slow_lane_share": "yes",
    }  # fmt: skip
    assert float(found.first_negative) == 1707
    assert (int(found.slow_lanes), int(found.lanes)) == (18, 64)
    assert float(found.slow_share) == 0.28125
    assert float(found.slow_share_of_many) == slow_share(1e4, 4096) == pytest.approx(0.296455, abs=5e-7)
    assert float(found.slowest_phase) == pytest.approx(0.473, abs=5e-4)
    assert float(found.slowest_cosine) == pytest.approx(0.890, abs=5e-4)


def test_a_base_between_two_windows_is_tried_itself():
    """Above the smallest base that keeps the kernel positive, bases fail again: what counts is the base that was given."""
    bounds = rope_bounds(4096, 32, 128)
    low, high = float(bounds.similar_beats_random), float(bounds.similar_beats_random_safe)
    bases = np.geomspace(low, high, 60).tolist()
    met = [rope_bounds(4096, 32, 128, base).similar_beats_random.attrs["met"] for base in bases]
    assert met[0] == met[-1] == "yes"
    assert "no" in met
    assert [allows(bounds, "similar_beats_random", base) for base in bases] == [one == "yes" for one in met]


def test_lanes_that_behave_as_constants_are_counted():
    theta = rope_table("default", 1e4, 128).theta
    found = lanes_in_context(rope_table("default", 1e4, 128), 2048, 0.95)
    assert int(found["constant_lanes"]) == sum(math.cos(2048 * turn) >= 0.95 and 2048 * turn < math.pi for turn in theta) == 3
    assert math.isnan(float(lanes_in_context(rope_table("default", 1e4, 128), 1706)["first_negative"]))


def test_at_least_and_less_than():
    assert is_met("depth", 5.0, 5.0)
    assert not is_met("depth", 4.9, 5.0)
    assert is_met("precision_wall", 4.9, 5.0)
    assert not is_met("precision_wall", 5.0, 5.0)


def test_every_theory_says_whose_it_is_and_what_it_assumes(tmp_path):
    found = rope_bounds(4096, base=1e4)
    assert [name for name in found.data_vars if "theory" in found[name].attrs] == list(THEORIES)
    for name in THEORIES:
        assert all(found[name].attrs[part] for part in ("theory", "source", "assumptions", "bound", "long_name", "met"))
    found.to_netcdf(tmp_path / "bounds.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "bounds.nc", engine="h5netcdf") as read:
        xr.testing.assert_identical(read.load(), found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 0}, "The context is 0"),
        ({"context": [4096, -1]}, "The context is"),
        ({"layers": 0}, "The layers is 0"),
        ({"width": 2}, "The width is 2"),
        ({"width": 65}, "The width is 65"),
        ({"epsilon": 1.0}, "The epsilon is 1.0"),
        ({"dtype": "float8"}, "The dtype is float8"),
        ({"lane": "fast"}, "The lane is fast"),
        ({"context": [1024, 2048], "base": 1e4}, "A base and 2 contexts"),
        ({"base": 1.0}, "The rotary base is 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        rope_bounds(**settings)
