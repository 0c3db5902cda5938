"""Frequencies, bands and the kernel of relative positions, against formulas and published values."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.models.frequencies import rope_table
from lens.probes.rope import bands, envelope, first_negative, frequencies_of, kernel_values, rope_frequencies, rope_kernel


def theta(base: float, width: int) -> np.ndarray:
    return rope_table("default", base, width).theta


def direct(lanes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return np.cos(np.multiply.outer(offsets, lanes)).sum(axis=1)


def test_the_slowest_lane_of_the_first_rotary_models():
    found = rope_frequencies(base=1e4, width=128, context=4096)
    assert float(found.theta[63]) == pytest.approx(1.1547819846894582e-4, rel=1e-15)
    assert float(found.wavelength[63]) == pytest.approx(54410.143, abs=5e-4)
    assert float(found.turns[63]) == pytest.approx(4096 / 54410.143, rel=1e-7)
    assert float(found.theta[0]) == 1


def test_lanes_are_fast_middle_or_slow():
    assert bands([6.28, 31.9, 32.0, 4096.0, 4096.1, np.inf], 4096) == ["fast", "fast", "middle", "middle", "slow", "slow"]
    found = rope_frequencies(base=1e4, width=128, context=4096)
    counts = {name: int((found.band == name).sum()) for name in ("fast", "middle", "slow")}
    assert counts == {"fast": 12, "middle": 34, "slow": 18}


def test_what_a_kind_does_to_its_lanes_is_listed():
    found = rope_frequencies("yarn", base=1e4, width=128, context=65536, factor=16.0, original_max_position_embeddings=4096)
    counts = {name: int((found.treatment == name).sum()) for name in ("unchanged", "blended", "divided")}
    assert counts == {"unchanged": 21, "blended": 25, "divided": 18}
    assert float(found.attention_factor) == pytest.approx(1.27725887222, rel=1e-11)
    assert (found.attrs["kind"], found.attrs["parameter_factor"]) == ("yarn", 16.0)


def test_a_lane_that_stands_still_is_slow_and_never_turns():
    found = frequencies_of(rope_table("explicit", theta=np.array([1.0, 0.0])), 100)
    assert found.band.to_numpy().tolist() == ["fast", "slow"]
    assert (float(found.wavelength[1]), float(found.turns[1])) == (np.inf, 0)


def test_frequencies_survive_a_file(tmp_path):
    found = rope_frequencies("llama3", base=5e5, width=128, context=131_072, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=8192)  # fmt: skip
    found.to_netcdf(tmp_path / "frequencies.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "frequencies.nc", engine="h5netcdf") as read:
        xr.testing.assert_identical(read.load(), found)


@pytest.mark.parametrize(("base", "width"), [(1e4, 16), (1e4, 128), (5e5, 64)])
def test_the_kernel_is_the_sum_of_cosines(base, width):
    lanes = theta(base, width)
    found = rope_kernel(lanes, 131_072)
    offsets = np.arange(0, 131_073, 499)
    # An offset times θ is only known to 2⁻⁵³ of itself, up to 1.5e-11 here, in the direct sum too.
    assert found.kernel.to_numpy()[offsets] == pytest.approx(direct(lanes, offsets), abs=2e-11 * width)
    assert float(found.kernel[0]) == width / 2 == float(found.ceiling)
    assert float(abs(found.kernel).max()) <= width / 2


def test_weights_are_complex_amplitudes_of_the_lanes():
    lanes, generator = theta(1e4, 16), np.random.default_rng(0)
    weights = generator.normal(size=8) + 1j * generator.normal(size=8)
    found = rope_kernel(lanes, 300, weights)
    offsets = np.arange(301)
    expected = (weights * np.exp(1j * np.multiply.outer(offsets, lanes))).sum(axis=1).real
    assert found.kernel.to_numpy() == pytest.approx(expected, abs=1e-12)
    assert float(abs(found.kernel).max()) <= float(found.ceiling) == pytest.approx(np.abs(weights).sum())
    assert rope_kernel(lanes, 300, 2 * np.ones(8)).kernel.to_numpy() == pytest.approx(2 * direct(lanes, offsets), abs=1e-11)


@pytest.mark.parametrize("count", [1, 2, 3, 17, 256, 1000])
@pytest.mark.parametrize("start", [0, 1, 12345])
def test_any_run_of_offsets_can_be_had(start, count):
    lanes = theta(1e4, 32)
    assert kernel_values(lanes, count, start=start) == pytest.approx(direct(lanes, start + np.arange(count)), abs=1e-10)


@pytest.mark.parametrize("points", [1, 7, 1000, 5000])
def test_the_envelope_hides_no_swing(points):
    kernel = rope_kernel(theta(1e4, 128), 4096)
    found, values = envelope(kernel, points), kernel.kernel.to_numpy()
    assert found.sizes["offset"] <= points
    starts, lasts = found.offset.to_numpy(), found["last"].to_numpy()
    assert starts[0] == 0
    assert lasts[-1] == 4096
    assert (starts[1:] == lasts[:-1] + 1).all()
    for start, last, low, high in zip(starts, lasts, found.low.to_numpy(), found.high.to_numpy(), strict=True):
        assert (low, high) == (values[start : last + 1].min(), values[start : last + 1].max())


@pytest.mark.parametrize(
    ("base", "width", "expected"),
    [
        (500.0, 128, 171), (1e4, 16, 91), (1e4, 64, 725), (1e4, 128, 1707), (1e4, 256, 2653),
        (1e5, 128, 7757), (5e5, 128, 18438), (1e6, 128, 27115), (1e6, 256, 71627),
    ],
)  # fmt: skip
def test_the_first_offset_below_zero(base, width, expected):
    lanes = theta(base, width)
    assert first_negative(lanes, 131_072) == expected == first_negative(lanes, expected)
    assert first_negative(lanes, expected - 1) is None


@pytest.mark.parametrize(
    ("base", "context", "expected"),
    [
        (3.1e5, 16_000, 12_223), (6.4e5, 32_000, 27_685), (3.6e7, 256_000, 207_455), (6.4e7, 512_000, 511_210),
        (5.1e8, 1_000_000, 874_868), (2.7e4, 4096, 4079), (7.8e6, 131_072, 128_915),
    ],
)  # fmt: skip
def test_published_bases_that_fail_within_their_own_context(base, context, expected):
    assert first_negative(theta(base, 128), context) == expected


def test_twice_the_kernel_is_how_far_a_similar_key_outscores_a_random_one():
    """By simulation, for components of unit variance: E[q·R(q + noise)] − E[q·Rk] is the trace of the rotation R."""
    lanes, generator, draws = theta(1e4, 128), np.random.default_rng(0), 20_000
    query, random, noise = generator.normal(size=(3, draws, 64, 2)).view(np.complex128)[..., 0]
    turned = np.conj(np.exp(100j * lanes))
    gaps = (np.conj(query) * turned * (query + 0.5 * noise - random)).sum(axis=1).real
    expected = 2 * float(kernel_values(lanes, 1, start=100)[0])
    assert expected == pytest.approx(61.0869, abs=5e-5)
    assert gaps.mean() == pytest.approx(expected, abs=4 * gaps.std() / np.sqrt(draws))


@pytest.mark.parametrize("context", [0, -1, 1 << 23])
def test_a_context_out_of_bounds_is_refused(context):
    for probe in (lambda: rope_frequencies(context=context) if context < 1 else rope_kernel(theta(1e4, 16), context),
                  lambda: first_negative(theta(1e4, 16), context)):  # fmt: skip
        with pytest.raises(InputError, match="The context is"):
            probe()


def test_weights_of_another_length_and_no_points_are_refused():
    with pytest.raises(InputError, match="one for each of 8 lanes"):
        rope_kernel(theta(1e4, 16), 10, np.ones(7))
    with pytest.raises(InputError, match="0 points"):
        envelope(rope_kernel(theta(1e4, 16), 10), 0)
