"""The smallest bases on the grid, against the published table, and the package's own table against the search."""

from __future__ import annotations

import numpy as np
import pytest

from lens.base.errors import InputError
from lens.models.frequencies import rope_table
from lens.probes.rope import first_negative
from lens.probes.rope_minimum import (
    CONTEXTS,
    STEPS_PER_DECADE,
    WIDTHS,
    _shipped,
    base_per_token,
    known_min_base,
    min_base,
    minimum_bases,
    published_minimum_bases,
)
from lens.probes.rope_practice import rope_practice

EIGHT = [2**k for k in range(10, 18)]
INFIMUM = {
    128: [4.30e3, 1.16e4, 2.87e4, 8.38e4, 2.34e5, 6.31e5, 2.21e6, 7.03e6],
    64: [7.76e3, 2.96e4, 1.05e5, 3.25e5, 1.36e6, 4.42e6, 1.86e7, 8.10e7],
}
SAFE = {
    128: [6.03e3, 2.28e4, 5.89e4, 3.95e5, 1.32e6, 3.34e6, 1.41e7, 3.41e7],
    64: [2.31e4, 7.50e4, 9.77e5, 1.92e6, 7.30e6, 3.97e7, 2.95e8, 1.01e9],
}


def to_three_digits(values) -> list[float]:
    return [float(f"{value:.2e}") for value in np.ravel(values)]


@pytest.mark.parametrize("width", [128, 64])
def test_bases_of_eight_contexts(width):
    found = minimum_bases(EIGHT, [width])
    assert to_three_digits(found.infimum) == INFIMUM[width]
    assert to_three_digits(found.safe) == SAFE[width]


@pytest.mark.parametrize(("context", "width"), [(1024, 128), (2048, 128), (4096, 64), (512, 32), (1024, 16)])
def test_the_shipped_table_is_what_the_search_finds(context, width):
    assert _shipped()[context, width] == min_base(context, width)


def test_the_shipped_pairs_are_those_of_every_width_and_context():
    assert list(_shipped()) == [(context, width) for width in WIDTHS for context in CONTEXTS]
    released = rope_practice()
    assert set(zip(released.context.to_numpy().tolist(), released.width.to_numpy().tolist(), strict=True)) <= set(_shipped())


def test_every_shipped_pair_holds_at_its_ends():
    """Feasible at both bases, and not one step below either (where the safe base is above the infimum)."""
    step = 10 ** (1 / STEPS_PER_DECADE)
    for (context, width), one in _shipped().items():
        for base in {one.infimum, one.safe}:
            assert first_negative(rope_table("default", base, width).theta, context) is None
            assert first_negative(rope_table("default", base / step, width).theta, context) is not None


def test_published_bounds_beside_ours():
    """The infimum lies within 40 % of the published bound; five of eleven bounds fail within their own context, by rounding."""
    found = published_minimum_bases()
    assert found.published_context.to_numpy().tolist() == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    assert to_three_digits(found.infimum)[:8] == INFIMUM[128]
    assert 0.6 < float(found.ratio.min()) < float(found.ratio.max()) < 1.4
    negative = {1000: {}, 1024: {}}
    for thousand, failing in negative.items():
        for context in found.published_context.to_numpy():
            first = float(found.first_negative.sel(thousand=thousand, published_context=context))
            failing |= {} if np.isnan(first) else {int(context): int(first)}
    assert negative[1000] == {16: 12_223, 32: 27_685, 256: 207_455, 512: 511_210, 1000: 874_868}
    assert negative[1024] == negative[1000] | {4: 4079, 128: 128_915}


@pytest.mark.parametrize(
    ("width", "expected"),
    [(16, 1097), (32, 100.1), (64, 14.47), (128, 5.67), (256, 3.59), (512, 2.32), (1024, 2.07), (4096, 1.75)],
)
def test_base_per_token_at_2048_falls_with_the_number_of_lanes(width, expected):
    digits = len(str(expected).replace(".", ""))
    assert float(f"{known_infimum(2048, width) / 2048:.{digits}g}") == expected


def known_infimum(context: int, width: int) -> float:
    """The infimum alone: the search for a safe base of 2,048 lanes would take a minute."""
    from lens.probes.rope_minimum import _base, _first_feasible

    return _base(_first_feasible(context, -2 * np.arange(width // 2) / width))


def test_the_limit_of_many_lanes():
    assert base_per_token() == pytest.approx(1.62205, abs=5e-6)
    assert 1 / base_per_token() == pytest.approx(0.616505, abs=5e-7)
    assert base_per_token() < known_infimum(2048, 4096) / 2048


def test_a_pair_that_is_not_shipped_is_searched():
    assert (300, 16) not in _shipped()
    found = known_min_base(300, 16)
    assert found == min_base(300, 16)
    assert found.infimum <= found.safe


@pytest.mark.parametrize("width", [2, 0, 7])
def test_widths_without_a_bound_are_refused(width):
    with pytest.raises(InputError, match=f"The rotary width is {width}"):
        min_base(1024, width)
