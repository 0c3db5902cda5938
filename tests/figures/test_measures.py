"""Colourings: shades between 0 and 1, the same range for every picture of a vocabulary, ink that can be read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens.base.errors import InputError
from lens.figures.measures import DEEP, SURFACE, Measure, cell_values, chosen_measure, first_shown, ink, measures, shown_layers

VALUES = st.floats(-1e6, 1e6) | st.sampled_from([0.0, np.inf, -np.inf, np.nan])
LINEAR = Measure("a", "a", "nats", "linear", (0.0, 4.0))
LOG = Measure("b", "b", "", "log", (1.0, 10_000.0))
REVERSED = Measure("c", "rank", "", "log", (1.0, 10_000.0), reverse=True)


@given(st.lists(VALUES, min_size=1))
@pytest.mark.parametrize("measure", [LINEAR, LOG, REVERSED], ids=lambda m: m.name)
def test_shades_lie_between_0_and_1_and_nan_stays(measure, values):
    shades = measure.shade(np.array(values))
    known = ~np.isnan(values)
    assert ((shades[known] >= 0) & (shades[known] <= 1)).all()
    assert np.isnan(shades[~known]).all()


@pytest.mark.parametrize(
    ("measure", "values", "shades"),
    [
        (LINEAR, [-1, 0, 1, 2, 4, 9], [0, 0, 0.25, 0.5, 1, 1]),
        (LOG, [0, 1, 10, 100, 10_000, 1e9], [0, 0, 0.25, 0.5, 1, 1]),
        (REVERSED, [0, 1, 10, 100, 10_000, 1e9], [1, 1, 0.75, 0.5, 0, 0]),
    ],
)
def test_shades_of_known_values(measure, values, shades):
    assert measure.shade(np.array(values, dtype=float)) == pytest.approx(shades, abs=1e-15)


def test_shading_leaves_its_input_alone():
    values = np.array([0.0, 5.0, np.nan])
    LOG.shade(values)
    assert np.array_equal(values, [0.0, 5.0, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("measure", "ends", "title"),
    [(LINEAR, ("0", "4"), "a (nats)"), (LOG, ("1", "10,000"), "b"), (REVERSED, ("10,000", "1"), "rank")],
)
def test_ends_belong_to_shade_0_and_1(measure, ends, title):
    assert measure.ends == ends
    assert measure.title == title


def test_ranges_depend_on_the_vocabulary_alone(dataset):
    found = measures(dataset)
    assert list(found) == ["probability", "entropy", "next_rank", "kl_to_final"]
    assert found["entropy"].range == (0.0, pytest.approx(np.log(128)))
    assert found["next_rank"].range == (1.0, 128.0)
    assert measures(dataset.isel(position=[0], layer=[0])) == found


def test_the_extremes_of_a_vocabulary_reach_both_ends_of_the_ramp(dataset):
    found = measures(dataset)
    assert found["entropy"].shade(np.array([0, np.log(128)])) == pytest.approx([0, 1])
    assert found["next_rank"].shade(np.array([1.0, 128.0])) == pytest.approx([1, 0])
    assert found["probability"].shade(np.array([0.0, 1.0])) == pytest.approx([0, 1])


@pytest.mark.parametrize("name", ["entropy", "next_rank", "kl_to_final"])
def test_cell_values_are_the_variables(dataset, name):
    assert np.array_equal(cell_values(dataset, name), dataset[name].to_numpy(), equal_nan=True)


def test_the_probability_of_a_cell_is_that_of_its_first_word(dataset):
    assert np.array_equal(cell_values(dataset, "probability"), np.exp(dataset.logprob.to_numpy()[:, :, 0]))


def test_specs_are_plain_and_complete(dataset):
    assert measures(dataset)["next_rank"].spec() == {
        "name": "next_rank", "label": "rank of next", "unit": "", "scale": "log", "range": [1.0, 128.0], "reverse": True,
    }  # fmt: skip


def test_an_unknown_colour_is_refused_with_the_known_ones(dataset):
    with pytest.raises(InputError, match=r"'blue'.*probability, entropy, next_rank, kl_to_final"):
        chosen_measure(dataset, "blue")


@pytest.mark.parametrize(("stride", "layers"), [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (3, [0, 3]), (99, [0, 3])])
def test_the_first_and_last_layer_are_always_shown(dataset, stride, layers):
    assert shown_layers(dataset, stride) == layers


@pytest.mark.parametrize("stride", [0, -1])
def test_a_stride_below_one_is_refused(dataset, stride):
    with pytest.raises(InputError, match=f"The layer stride is {stride}"):
        shown_layers(dataset, stride)


@pytest.mark.parametrize(("layer", "shown"), [(0.0, 0), (1.0, 2), (np.int32(2), 2), (np.float32(3), 3), (np.nan, None)])
def test_the_first_shown_layer_at_or_above(layer, shown):
    assert first_shown([0, 2, 3], layer) == shown


# -- ink ------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, WCAG 2.2."""
    share = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float(np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def on_the_ramp(shade: float) -> str:
    ends = [np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) for colour in (SURFACE, DEEP)]
    return "#" + "".join(f"{round(c):02x}" for c in ends[0] + (ends[1] - ends[0]) * shade)


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_words_can_be_read_on_every_shade():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    worst = min(contrast(ink(shade), on_the_ramp(shade)) for shade in np.linspace(0, 1, 513))
    assert worst >= 4.5


def test_an_unknown_value_is_written_on_the_page_in_black():
    assert ink(float("nan")) == ink(0.0) == "#000000"
    assert ink(1.0) == "#ffffff"


def test_a_lens_of_some_layers_shows_them_all(dataset):
    some = dataset.isel(layer=[0, 1, 3])
    assert shown_layers(some, 2) == some.layer.values.tolist() == [0, 1, 3]
    assert shown_layers(dataset, 2) == [0, 2, 3]
