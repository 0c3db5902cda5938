"""Errors of rotary tables in low precision, at the positions and bases where they were published or measured before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lens.base.errors import InputError
from lens.models.frequencies import rope_table
from lens.probes.rope_precision import PATHS, rope_precision

BASES = (1e4, 5e5, 1e6, 2.8e9)


def at(base: float, position: int, path: str = "float32 angles"):
    return rope_precision(base, 128, np.array([position - 1, position]), path)


def largest_error(base: float, position: int, path: str) -> float:
    return float(rope_precision(base, 128, np.array([position]), path).angle_error.max())


@pytest.mark.parametrize(
    ("path", "position", "low", "high"),
    [
        ("float32 angles", 4095, 1.3e-4, 2.9e-4),
        ("float32 angles", 131_071, 3.9e-3, 8.5e-3),
        ("float32 angles", 2**20 - 1, 0.029, 0.091),
        ("rounded frequencies", 4095, 0.7e-4, 1.8e-4),
        ("rounded frequencies", 131_071, 1.45e-3, 2.95e-3),
        ("rounded frequencies", 2**20 - 1, 0.0255, 0.0435),
    ],
)
def test_the_error_of_float32_grows_with_the_position_and_hardly_with_the_base(path, position, low, high):
    errors = [largest_error(base, position, path) for base in BASES]
    assert low <= min(errors)
    assert max(errors) <= high


@pytest.mark.parametrize("base", [500.0, 1e4, 1e5, 1e8, 2.8e9])
@pytest.mark.parametrize("position", [4095, 131_071, 2**20 - 1])
def test_rounding_a_frequency_and_an_angle_bounds_the_error_of_every_lane(base, position):
    found = rope_precision(base, 128, np.array([position]), "rounded frequencies").angle_error.to_numpy()
    assert (found <= 2 * position * rope_table("default", base, 128).theta * 2**-24).all()


@pytest.mark.parametrize(("position", "error", "lane"), [(4095, 1.37e-4, 2), (131_071, 2.67e-3, 1), (2**20 - 1, 3.07e-2, 3)])
def test_the_largest_error_sits_in_a_fast_lane(position, error, lane):
    found = rope_precision(1e4, 128, np.array([position]), "rounded frequencies").angle_error.to_numpy()
    assert int(found.argmax()) == lane
    assert float(found.max()) == pytest.approx(error, rel=3e-3)


@pytest.mark.parametrize("base", [1e4, 1e8, 2.8e9])
def test_no_neighbours_collide_in_float32_beyond_the_precision_wall(base):
    found = at(base, 2**20 - 1)
    assert found.sizes["lane"] == 64
    assert int(found.adjacent_collisions.sum()) == 0
    assert not bool(found.last_collides.any())


def test_no_neighbours_collide_at_any_position_of_the_largest_base_in_use():
    found = rope_precision(2.8e9, 128, 131_072)
    assert int(found.adjacent_collisions.sum()) == 0
    assert int(found.distinct_positions) == 131_072


@pytest.mark.parametrize(("count", "distinct"), [(256, 256), (8192, 897), (131_072, 1409)])
def test_positions_in_bfloat16_become_one(count, distinct):
    assert int(rope_precision(1e4, 128, count, "bfloat16 positions").distinct_positions) == distinct


@pytest.mark.parametrize(("base", "colliding"), [(1e4, 11), (5e5, 28)])
def test_tables_in_bfloat16_keep_all_rows_apart_though_lanes_collide(base, colliding):
    assert int(rope_precision(base, 128, 8192, "bfloat16 tables").distinct_positions) == 8192
    found = at(base, 4095, "bfloat16 tables")
    assert int(found.last_collides.sum()) == int(found.adjacent_collisions.sum()) == colliding


def test_float32_angles_are_those_of_the_library():
    """The frequencies by transformers' own arithmetic, so that the error is the one that models have."""
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=512, num_attention_heads=4, head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    embedding = LlamaRotaryEmbedding(config)
    places = np.array([0, 1, 4095, 131_071])
    cosine, sine = embedding(torch.zeros(1, 4, 1), torch.from_numpy(places)[None])
    true = np.multiply.outer(places, rope_table("default", 5e5, 128).theta)
    found = rope_precision(5e5, 128, places)
    gaps = [
        np.abs(part[0, :, :64].double().numpy() - exact).max(axis=0)
        for part, exact in ((cosine, np.cos(true)), (sine, np.sin(true)))
    ]
    # Two evaluations of a float32 cosine may differ in its last bit.
    assert found.table_error.to_numpy() == pytest.approx(np.maximum(*gaps), abs=2**-23)


def test_a_running_product_is_worse_than_a_power_and_no_path_is_exact():
    assert largest_error(1e4, 4095, "running product") > 2 * largest_error(1e4, 4095, "float32 angles")
    assert all(largest_error(1e4, 4095, path) > 0 for path in PATHS)


def test_the_first_position_is_exact_everywhere():
    for path in PATHS:
        found = rope_precision(1e4, 16, 1, path)
        assert float(found.angle_error.max()) == float(found.table_error.max()) == 0
        assert int(found.distinct_positions) == 1


@pytest.mark.parametrize("positions", [0, -3, 1 << 23, np.array([3, 3]), np.array([-1, 0]), np.array([], dtype=int)])
def test_positions_that_are_none_are_refused(positions):
    with pytest.raises(InputError, match="positions"):
        rope_precision(positions=positions)


def test_another_path_is_refused():
    with pytest.raises(InputError, match="The path is 'float8'"):
        rope_precision(path="float8")
