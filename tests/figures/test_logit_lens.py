"""The grid's description and its plotly figure say what the Dataset says, and token text stays text."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.logit_lens import figure, grid_spec, sentence
from lens.figures.measures import ACCENT, measures, shown_layers

ARRAYS = ("top", "probability", "final_probability", "entropy", "next_rank", "kl_to_final")


def decode(array: dict) -> np.ndarray:
    """As the browser reads an array: shares of a largest value, and a number that stands for "unknown"."""
    stored = np.frombuffer(array["data"], np.dtype(array["dtype"]).newbyteorder("<")).reshape(array["shape"])
    if "scale" in array:
        return stored * array["scale"]
    return np.where(stored == array["missing"], np.nan, stored) if "missing" in array else stored


def shown_texts(array) -> np.ndarray:
    return np.vectorize(visible, otypes=[object])(array)


def without_bytes(spec: dict) -> dict:
    return {name: None if isinstance(value, dict) else value for name, value in spec.items()}


# -- the description for the browser --------------------------------------------------------------


@pytest.mark.parametrize("which", ["dataset", "hostile", "story"])
def test_the_arrays_are_the_datasets_values(which, request):
    data: xr.Dataset = request.getfixturevalue(which)
    spec = grid_spec(data)
    words = np.array(spec["words"], dtype=object)
    assert (words[decode(spec["top"])] == shown_texts(data.token)).all()
    assert (np.array(spec["word_ids"])[decode(spec["top"])] == data.token_id.to_numpy()).all()
    assert np.array_equal(decode(spec["next_rank"]), data.next_rank.to_numpy(), equal_nan=True)
    shares = {
        "probability": (np.exp(data.logprob), 1.0),
        "final_probability": (np.exp(data.final_logprob), 1.0),
        "entropy": (data.entropy, np.log(data.attrs["vocabulary"])),
        "kl_to_final": (data.kl_to_final, float(data.kl_to_final.max())),
    }
    for name, (values, largest) in shares.items():
        assert np.abs(decode(spec[name]) - values.to_numpy()).max() <= 0.51 * largest / 65535
    assert (decode(spec["kl_to_final"])[-1] == 0).all()
    assert {name for name, value in spec.items() if isinstance(value, dict)} == set(ARRAYS)


@pytest.mark.parametrize("which", ["dataset", "hostile", "story"])
def test_the_plain_values_are_the_datasets(which, request):
    data: xr.Dataset = request.getfixturevalue(which)
    spec = grid_spec(data)
    assert spec["layers"] == list(range(data.sizes["layer"]))
    assert spec["input"] == [visible(token) for token in data.input_token.to_numpy()]
    assert [spec["words"][place] for place in spec["final"]] == list(shown_texts(data.token[-1, :, 0]))
    assert [spec["words"][place] for place in spec["next"][:-1]] == spec["input"][1:]
    assert spec["next"][-1] == -1
    assert spec["settles"] == data.settled_layer.to_numpy().tolist()
    assert spec["first_correct"] == data.first_correct_layer.fillna(-1).astype(int).to_numpy().tolist()
    assert spec["sentences"] == [sentence(data, position) for position in range(data.sizes["position"])]
    assert spec["rank_count"] == data.sizes["rank"]
    assert spec["title"] == data.attrs["model"]
    assert [colour["name"] for colour in spec["colours"]] == list(measures(data))
    assert len(spec["word_ids"]) == len(set(spec["word_ids"])) == len(spec["words"])


def test_a_spec_is_a_pure_function_of_plain_data(dataset):
    before = dataset.copy(deep=True)
    first, second = grid_spec(dataset), grid_spec(dataset)
    assert first == second
    assert dataset.identical(before)
    plain = without_bytes(first)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_a_spec_survives_netcdf(dataset, tmp_path):
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as again:
        assert grid_spec(again) == grid_spec(dataset)


def test_unsettling_texts_are_visible_in_every_word(hostile):
    spec = grid_spec(hostile)
    for word in (*spec["words"], *spec["input"], *spec["sentences"]):
        assert not re.search(r"[\x00-\x1f\x7f\u202e\u200b\ufeff\u2028\ud800-\udfff]", word)


def test_thirty_blocks_and_sixty_four_tokens_take_58_to_75_kilobytes(smollm2):
    ids = smollm2.encode("The Eiffel Tower is located in the city of Paris, the capital of France. " * 5)[:64]
    spec = grid_spec(lens.logit_lens(smollm2.run(ids)))
    assert decode(spec["probability"]).shape == (31, 64, 5)
    size = sum(len(spec[name]["data"]) for name in ARRAYS) + len(json.dumps(without_bytes(spec)))
    assert 58_000 <= size <= 75_000


# -- the sentence ---------------------------------------------------------------------------------


def test_the_sentence_of_an_answer_that_every_layer_gives(story):
    probability = np.exp(float(story.logprob[-1, 0, 0]))
    expected = f"After “w10” the model answers “w11” with probability {probability:.2f}; every layer says so. The text agrees."
    assert sentence(story, 0) == expected


def test_the_sentence_of_an_answer_that_only_the_last_layer_gives(story):
    assert sentence(story, 1).endswith("only the last layer says so. The text goes on with “w12”.")


@pytest.mark.parametrize(("lens_name", "named"), [(None, "plain"), ("tuned", "tuned")])
def test_the_sentence_of_an_answer_that_comes_midway_names_layer_and_lens(story, lens_name, named):
    story["settled_layer"][:] = 2
    if lens_name:
        story.attrs["lens"] = lens_name
    assert f"; the {named} lens says so from layer 2 of 3 on." in sentence(story, 1)


def test_the_sentence_of_the_last_position_has_no_text_to_agree_with(story):
    assert sentence(story, 2).endswith("only the last layer says so.")


def test_a_word_that_only_looks_like_the_next_one_does_not_agree(story):
    """A leading space shows as a middle dot; a token can also hold a real one."""
    story["token"][-1, 0, 0] = " w11"
    story["token_id"][-1, 0, 0] = 77
    story["input_token"] = story.input_token.copy(data=np.array(["w10", "·w11", "w12"], dtype=object))
    assert "The text agrees" not in sentence(story, 0)


def test_the_sentence_makes_tokens_visible(hostile):
    for position, token in enumerate(hostile.input_token.to_numpy()):
        assert sentence(hostile, position).startswith(f"After “{visible(token)}” the model")


# -- the plotly figure ----------------------------------------------------------------------------


def labels(chart) -> list[str]:
    heat = chart.data[0]
    hover = [line for row in heat.customdata for cell in row for line in cell.split("<br>")]
    return [*np.ravel(heat.text), *hover, *chart.layout.xaxis.ticktext]


def marks(chart) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Column and row of each rule and of each dot."""
    rule, dots = chart.data[1], chart.data[2]
    starts = [(x, y) for x, y in zip(rule.x[::3], rule.y[::3], strict=True)]
    return [(round(x), round(y)) for x, y in starts], [(round(x), round(y)) for x, y in zip(dots.x, dots.y, strict=True)]


def test_the_heat_map_shows_words_and_shades(dataset):
    heat = figure(dataset, "entropy").data[0]
    shown = [[html.unescape(word) for word in row] for row in heat.text]
    assert shown == [[visible(word, 9) for word in row] for row in dataset.token[:, :, 0].to_numpy()]
    assert np.array_equal(heat.z, measures(dataset)["entropy"].shade(dataset.entropy.to_numpy()))


def test_hover_lists_every_rank_with_its_probability(dataset):
    lines = figure(dataset, "kl_to_final").data[0].customdata[2][3].split("<br>")
    cell = dataset.isel(layer=2, position=3)
    assert lines[0] == f"layer 2, after “w4”, KL to last {float(cell.kl_to_final):.3g}"
    assert lines[1:] == [f"{np.exp(p):.2f}  {w}" for p, w in zip(cell.logprob.to_numpy(), cell.token.to_numpy(), strict=True)]


def test_a_hostile_token_is_neither_tag_nor_formula_nor_template(hostile):
    chart = figure(hostile)
    for label in labels(chart):
        assert not set("<>$") & set(label)
    assert chart.data[0].texttemplate == "%{text}"
    ticks = [html.unescape(tick) for tick in chart.layout.xaxis.ticktext]
    assert ticks == [visible(token, 9) for token in hostile.input_token.to_numpy()]
    assert json.loads(chart.to_json())["data"][0]["type"] == "heatmap"


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_rows_are_the_shown_layers(dataset, stride):
    chart = figure(dataset, stride=stride)
    layers = shown_layers(dataset, stride)
    assert list(chart.layout.yaxis.ticktext) == layers
    assert np.shape(chart.data[0].z) == (len(layers), 6)


@pytest.mark.parametrize(
    ("stride", "rules", "dots"),
    [
        (1, [(0, 0), (1, 3), (2, 3)], [(0, 0), (1, 0)]),
        (2, [(0, 0), (1, 2), (2, 2)], [(0, 0), (1, 0)]),
        (5, [(0, 0), (1, 1), (2, 1)], [(0, 0), (1, 0)]),
    ],
)
def test_marks_sit_at_the_first_shown_layer(story, stride, rules, dots):
    found_rules, found_dots = marks(figure(story, stride=stride))
    assert found_rules == rules
    assert found_dots == dots
    assert figure(story).data[1].line.color == ACCENT


def test_a_dot_marks_only_a_cell_that_shows_the_true_next_word(story):
    """Right at layer 1 and 3, wrong at 2: with layer 1 hidden, the dot belongs to layer 3."""
    story["token_id"][:, 1, 0] = [13, 12, 13, 12]
    story["token"][:, 1, 0] = ["w13", "w12", "w13", "w12"]
    story["first_correct_layer"][:] = [0, 1, np.nan]
    assert marks(figure(story, stride=1))[1] == [(0, 0), (1, 1)]
    assert marks(figure(story, stride=2))[1] == [(0, 0), (1, 2)]


@pytest.mark.parametrize(
    ("options", "message"), [({"colour": "blue"}, "The colour is 'blue'"), ({"stride": 0}, "The layer stride is 0")]
)
def test_unknown_options_are_refused(dataset, options, message):
    with pytest.raises(InputError, match=message):
        figure(dataset, **options)
