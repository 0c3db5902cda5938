"""The charts of a frozen map say what its Datasets say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.frozen_map import BESIDE, PICTURES, frozen_chart, token_labels
from lens.figures.static_chart import static_figure
from lens.models.frozen import freeze
from lens.models.model import Model
from lens.probes.frozen_map import frozen_contributions
from lens.probes.frozen_spectrum import frozen_map_spectrum
from lens.probes.token_ablations import token_ablations
from tests.models.families import build, word_tokenizer

Shown = tuple[xr.Dataset, xr.Dataset, xr.Dataset]


@pytest.fixture(scope="module")
def shown() -> Shown:
    """Of a model with biases, whose prompt says a word twice."""
    model = Model(build("gpt2"), word_tokenizer())
    frozen = freeze(model, "w1 w5 w1 w9")
    return (
        frozen_contributions(model, frozen, rival="w7"),
        frozen_map_spectrum(model, frozen, vectors=3),
        token_ablations(model, frozen, rival="w7"),
    )


def make(shown: Shown, picture: str = "layers", beside: str = "removed") -> list[dict[str, Any]]:
    return json.loads(json.dumps(frozen_chart(*shown, picture=picture, beside=beside)))["plots"]


def test_bars_are_contributions_and_what_is_lost(shown: Shown):
    contributions, _, ablations = shown
    assert token_labels(contributions) == ["0 w1", "w5", "2 w1", "w9"]
    tokens = make(shown)[0]
    assert tokens["x"]["labels"] == ["0 w1", "w5", "2 w1", "w9", "(biases)"]
    frozen, lost = tokens["series"]
    assert frozen["values"] == pytest.approx([*contributions.contribution.to_numpy(), float(contributions.bias)], rel=1e-3)
    assert lost["name"] == BESIDE["removed"]
    assert lost["values"][:4] == pytest.approx(ablations.effect[0].to_numpy(), rel=1e-3)
    assert lost["values"][4] is None
    assert "less that of “w7”" in tokens["y"]["title"]
    gradient = make(shown, beside="gradient")[0]["series"][1]
    assert gradient["values"][:4] == pytest.approx(contributions.gradient_contribution.to_numpy(), rel=1e-3)
    assert len(make(shown, beside="nothing")[0]["series"]) == 1


def test_titles_say_which_logit(shown: Shown):
    other = shown[0].assign_attrs(rival_id=-1, centred=1)
    assert make((other, *shown[1:]))[0]["y"]["title"].endswith("above the mean")
    assert "mean" not in make((other.assign_attrs(centred=0), *shown[1:]))[0]["y"]["title"]


def test_the_other_pictures(shown: Shown):
    contributions, spectrum, _ = shown
    layers = make(shown)[1]
    assert layers["value"]["signed"]
    assert layers["values"][2] == pytest.approx(contributions.state_contribution[2].to_numpy(), rel=1e-3, abs=1e-6)
    blocks = make(shown, "blocks")[1]
    assert blocks["series"][0]["values"] == pytest.approx(contributions.total.to_numpy(), rel=1e-3)
    assert blocks["series"][1]["values"] == pytest.approx(contributions.direct.to_numpy(), rel=1e-3)
    vectors = make(shown, "vectors")[1]
    assert vectors["series"][0]["values"] == pytest.approx(spectrum.contribution.to_numpy(), rel=1e-3)
    assert vectors["x"]["labels"][0] == f"1: {' '.join(spectrum.written[0, 0, :4].to_numpy())}"
    reading = make(shown, "reading")[1]
    assert reading["values"][1] == pytest.approx(spectrum.reading[1].to_numpy(), rel=1e-3, abs=1e-6)
    assert make(shown, "values")[1]["series"][0]["values"] == pytest.approx(spectrum.singular_value.to_numpy(), rel=1e-3)


@pytest.mark.parametrize("picture", PICTURES)
def test_every_picture_can_be_saved(shown: Shown, picture: str):
    assert static_figure(frozen_chart(*shown, picture=picture, beside="average")) is not None


def test_other_names_are_refused(shown: Shown):
    for wrong in ({"picture": "cake"}, {"beside": "cake"}):
        with pytest.raises(InputError, match="one of"):
            frozen_chart(*shown, **{"picture": "layers", "beside": "removed", **wrong})
