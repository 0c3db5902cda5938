"""A table beside the plain one of its base: the same numbers as its parts give, and stand-ins that say so."""

from __future__ import annotations

import numpy as np
import pytest

from lens.base.errors import InputError
from lens.models.frequencies import KINDS, rope_table
from lens.probes.rope import envelope, first_negative, kernel_values, rope_kernel
from lens.probes.rope_compare import POINTS, compare_rope, phases

NEEDED = {
    "linear": {"factor": 4.0},
    "ntk": {"factor": 4.0},
    "dynamic": {"factor": 4.0, "original_max_position_embeddings": 2048},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 2048},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 2048},
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 2048},
    "proportional": {"partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_beside_the_default_of_its_base(kind):
    found = compare_rope(kind, base=5e5, width=64, context=8192, **NEEDED.get(kind, {}))
    assert found.table.values.tolist() == (["default"] if kind == "default" else ["default", kind])
    np.testing.assert_array_equal(found.theta[0], rope_table("default", 5e5, 64).theta)
    assert found.treatment.shape == (32,)


@pytest.mark.parametrize("context", [1, 100, 4096, 10_001])
def test_the_runs_are_those_of_the_envelope(context):
    found, wanted = (
        compare_rope(width=64, context=context),
        envelope(rope_kernel(rope_table("default", 1e4, 64), context), POINTS),
    )
    for name in ("offset", "last"):
        np.testing.assert_array_equal(found[name], wanted[name])
    for name in ("low", "high"):
        np.testing.assert_array_equal(found[name][0], wanted[name])


@pytest.mark.parametrize("context", [100, 4096])
def test_extremes_and_first_negative_are_those_of_the_kernel(context):
    found = compare_rope(width=64, context=context)
    values = kernel_values(rope_table("default", 1e4, 64).theta, context + 1)
    assert float(found.low.min()) == pytest.approx(values.min(), abs=1e-9)
    assert float(found.high.max()) == 32
    below = first_negative(rope_table("default", 1e4, 64).theta, context)
    assert (None if np.isnan(found.first_negative[0]) else int(found.first_negative[0])) == below


def test_a_million_tokens_lose_no_extreme():
    found = compare_rope(base=1e7, context=1_010_000)
    assert int(found.first_negative[0]) == 144_660
    assert int(found["last"][-1]) == 1_010_000


def test_stand_ins_are_named_and_leave_alone_what_was_given():
    put_in = compare_rope("longrope", width=8, factor=8.0, original_max_position_embeddings=2048, length=4096)
    assert put_in.attrs["stand_ins"] == "short_factor, long_factor"
    np.testing.assert_allclose(put_in.theta[0] / put_in.theta[1], [1, 2, 4, 8])
    assert compare_rope("explicit", theta=[1.0, 0.5]).attrs["stand_ins"] == ""


def test_an_explicit_table_is_beside_the_default_of_as_many_lanes():
    found = compare_rope("explicit", theta=[1.0, 0.5, 0.0])
    assert found.theta.shape == (2, 3)
    assert float(found.slowest_wavelength[1]) == pytest.approx(4 * np.pi)


def test_phases_are_within_a_turn_and_their_mean_is_the_kernel():
    theta = rope_table("default", 1e4, 64).theta
    found = phases(theta, 12_345)
    np.testing.assert_allclose(np.exp(1j * found.angle), np.exp(12_345j * theta), atol=1e-12)
    assert ((found.angle >= 0) & (found.angle < 2 * np.pi)).all()
    assert 32 * float(found.mean_real) == pytest.approx(kernel_values(theta, 1, start=12_345)[0], abs=1e-9)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: compare_rope("swirl"), "'swirl'.*default"),
        (lambda: compare_rope("linear"), "not given factor"),
        (lambda: compare_rope(context=0), "0 tokens"),
        (lambda: phases(np.ones(2), -1), "position is -1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, says):
    with pytest.raises(InputError, match=says) as refused:
        make()
    assert "\n" not in str(refused.value)
