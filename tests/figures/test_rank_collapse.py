"""The charts of collapse say what the Datasets say."""

from __future__ import annotations

import json

import pytest
import torch
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLUE, GREEN, ORANGE, PURPLE
from lens.figures.rank_collapse import MEASURES, PICTURES, collapse_chart
from lens.figures.static_chart import static_figure
from lens.models.model import Model
from lens.probes.layer_spectrum import layer_spectrum
from lens.probes.low_pass import attention_response, low_pass
from lens.probes.rank_collapse import rank_collapse
from lens.probes.token_spectrum import token_spectrum
from tests.models.families import build

IDS = list(range(3, 40))


@pytest.fixture(scope="module")
def shown() -> tuple[xr.Dataset, dict[str, xr.Dataset]]:
    model = Model(build("llama"))
    run = model.run(IDS, attention=True)
    details = {
        "bands": token_spectrum(run),
        "parts": low_pass(model, IDS),
        "patterns": attention_response(run),
        "over layers": layer_spectrum(torch.randn(8, 5, 6)),
    }
    return rank_collapse(model, IDS), details


def make(shown, measure="residual_ratio", first_token="without", picture="bands", layer=2):
    collapse, details = shown
    spec = collapse_chart(collapse, details[picture], measure=measure, first_token=first_token, picture=picture, layer=layer)
    return json.loads(json.dumps(spec))["plots"]


def test_variants_have_their_names_and_colours(shown):
    depth, _ = make(shown)
    assert [(one["name"], one["colour"]) for one in depth["series"]] == [
        ("whole model", BLUE), ("no skips", GREEN), ("no MLPs", PURPLE), ("attention alone", ORANGE),
    ]  # fmt: skip
    wanted = shown[0].residual_ratio.sel(variant="neither", first_token="without")
    assert depth["series"][3]["values"] == pytest.approx(wanted.to_numpy(), rel=1e-3)
    assert depth["y"]["scale"] == "log"
    assert depth["x"]["values"] == [0, 1, 2, 3]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("first_token", ["with", "without"])
def test_every_measure_is_drawn_and_saved(shown, measure: str, first_token: str):
    depth, _ = make(shown, measure, first_token)
    wanted = shown[0][measure].sel(variant="whole", first_token=first_token).to_numpy()
    assert depth["series"][0]["values"] == pytest.approx(wanted, rel=1e-3)
    assert depth["y"]["title"] == MEASURES[measure][0]


def test_rounding_is_marked_where_it_is_near(shown):
    assert make(shown)[0]["rules"] == []
    collapse = shown[0].copy(deep=True)
    collapse["residual_ratio"][3, 1, -1] = 2e-7
    assert make((collapse, shown[1]))[0]["rules"][0]["label"] == "rounding"
    assert make((collapse, shown[1]), "mean_cosine")[0]["rules"] == []


def test_bands_stand_over_white_noise_and_empty_ones_are_left_out(shown):
    _, bands = make(shown)
    names = [one["name"] for one in bands["series"]]
    assert names == ["over half the text", "64 to 16 tokens", "16 to 4 tokens", "under 4 tokens"]
    found = shown[1]["bands"]
    wanted = (found.neuron_share / found.white_share).isel(band=-1).to_numpy()
    assert bands["series"][-1]["values"] == pytest.approx(wanted, rel=1e-3)


def test_the_other_pictures(shown):
    parts = make(shown, picture="parts")[1]
    assert [one["name"] for one in parts["series"]] == ["attention", "mlp", "block"]
    assert parts["series"][1]["values"] == pytest.approx(shown[1]["parts"].change.sel(stage="mlp").to_numpy(), rel=1e-3)
    patterns = make(shown, picture="patterns", layer=2)[1]
    assert [one["name"] for one in patterns["series"]] == ["block 1", "all blocks"]
    wanted = shown[1]["patterns"].response.sel(block=1).mean("head").to_numpy()[1:]
    assert patterns["series"][0]["values"] == pytest.approx(wanted, rel=1e-3)
    over = make(shown, picture="over layers")[1]
    assert over["series"][0]["values"] == pytest.approx(shown[1]["over layers"].share.to_numpy()[1:], rel=1e-3)


@pytest.mark.parametrize("picture", PICTURES)
def test_every_picture_can_be_saved(shown, picture: str):
    collapse, details = shown
    spec = collapse_chart(collapse, details[picture], measure="residual_ratio", first_token="with", picture=picture, layer=0)
    assert static_figure(spec) is not None


def test_other_names_are_refused(shown):
    collapse, details = shown
    for wrong in ({"measure": "rank"}, {"picture": "cake"}):
        settings = {"measure": "mean_cosine", "first_token": "with", "picture": "bands", "layer": 1, **wrong}
        with pytest.raises(InputError, match="one of"):
            collapse_chart(collapse, details["bands"], **settings)
