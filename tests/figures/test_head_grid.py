"""The description of the attention atlas: what the browser gets, how exactly, and how much of it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.head_grid import (
    BLOCK_BYTES,
    SCRIPTS,
    STYLES,
    WHOLE,
    block_spec,
    detail_spec,
    head_grid_chart,
    overview_spec,
    sends_block,
    strongest,
    tile_of,
)
from lens.figures.head_grid_page import head_grid_page, picture, require_suffix
from lens.figures.page import widget_source
from tests.base.hostile import HOSTILE
from tests.figures.test_page import SVG_NAMESPACE, Reader, state_of

ROUNDING = 0.5 / 65_534


def softmax(positions: int, seed: int = 0) -> np.ndarray:
    """A causal pattern, NaN above its diagonal."""
    logits = np.random.default_rng(seed).normal(0, 3, (positions, positions))
    weights = np.exp(logits) * np.tri(positions)
    return np.where(np.tri(positions) > 0, weights / weights.sum(-1, keepdims=True), np.nan)


def detail(positions: int, seed: int = 0) -> xr.Dataset:
    attention = softmax(positions, seed)
    spectrum = np.linalg.svd(np.nan_to_num(attention), compute_uv=False)
    return xr.Dataset(
        {
            "attention": (("query", "key"), attention),
            "logit": (("query", "key"), 7 * np.log(attention) + 2),
            "singular_value": ("rank", spectrum),
            "uniform_singular_value": ("rank", spectrum / 2),
            "identity_singular_value": ("rank", np.ones(positions)),
            "largest_norm": np.sqrt(positions),
        },
        {"rank": np.arange(1, positions + 1)},
    )


def measures(blocks: int = 3, heads: int = 4) -> xr.Dataset:
    values = np.arange(blocks * heads, dtype=float).reshape(blocks, heads)
    values[0, 1] = np.nan
    words = {"rank": "effective rank, made of σ", "share": "share", "skew": "skewness"}
    units = {"rank": "tokens", "share": "1", "skew": "1"}
    found = {"rank": values, "share": values / 20, "skew": values - 5}
    return xr.Dataset(
        {name: (("block", "head"), found[name], {"long_name": words[name], "units": units[name]}) for name in found},
        {"block": np.arange(blocks) + 2, "head": np.arange(heads)},
    )


RANGES = {"rank": None, "share": (0.0, 1.0), "skew": None}


def decode(array: dict) -> np.ndarray:
    stored = np.frombuffer(array["data"], np.dtype(array["dtype"]).newbyteorder("<")).reshape(array["shape"])
    values = array.get("low", 0.0) + stored * array.get("scale", 1)
    return np.where(stored == array["missing"], np.nan, values) if "missing" in array else values


# -- how exactly ----------------------------------------------------------------------------------


def test_weights_are_off_by_half_a_step_at_most():
    patterns = [softmax(40, seed) for seed in range(3)]
    sent = decode(block_spec(7, patterns, 3, 40)["weights"])
    for triangle, pattern in zip(sent, patterns, strict=True):
        assert np.abs(triangle - pattern[np.tril_indices(40)]).max() <= ROUNDING
    assert np.abs(sent[0] - patterns[0][np.tril_indices(40)]).max() > 0.4 * ROUNDING


def test_what_is_not_seen_is_missing_and_not_zero():
    pattern = softmax(12)
    pattern[8:, :3] = np.nan
    sent = decode(block_spec(0, [pattern], 1, 12)["weights"])[0]
    assert np.array_equal(np.isnan(sent), np.isnan(pattern[np.tril_indices(12)]))
    assert sent[0] == 1


def test_logits_are_off_by_half_of_their_range_over_65_534_at_most():
    given = detail(30)
    spec = detail_spec(given, 0, 0, whole=True)["logits"]
    logits = given.logit.to_numpy()[np.tril_indices(30)]
    span = logits.max() - logits.min()
    assert np.abs(decode(spec) - logits).max() <= ROUNDING * span * (1 + 1e-6)
    assert spec["bound"] >= np.abs(logits).max()


def test_measures_travel_in_float32_and_unknown_ones_as_nan():
    spec = overview_spec(measures(), ["a"], ranges=RANGES)
    for one, name in zip(spec["measures"], RANGES, strict=True):
        assert np.array_equal(decode(one["values"]), measures()[name].astype("float32"), equal_nan=True)
    assert [one["range"] for one in spec["measures"]] == [[0, 12], [0, 1], [-6, 6]]
    assert [one["signed"] for one in spec["measures"]] == [False, False, True]
    names = [(one["label"], one["words"], one["unit"]) for one in spec["measures"]]
    assert names[:2] == [("effective rank", "effective rank, made of σ", "tokens"), ("share", "share", "")]
    assert spec["blocks"] == [2, 3, 4]


# -- how much -------------------------------------------------------------------------------------


def size(value) -> int:
    """Bytes of arrays, and of everything else as JSON."""
    arrays = []
    text = json.dumps(value, default=lambda data: arrays.append(len(data)) or "")
    return sum(arrays) + len(text.encode())


def test_nine_heads_at_256_tokens_are_below_a_megabyte_with_their_whole_patterns():
    rows = np.random.default_rng(0).normal(size=(30, 9))
    many = xr.Dataset({f"m{n}": (("block", "head"), rows, {"long_name": f"m{n}", "units": "1"}) for n in range(30)},
                      {"block": range(30), "head": range(9)})  # fmt: skip
    spec = overview_spec(many, ["·lighthouse"] * 256, ranges=dict.fromkeys(many))
    block = block_spec(0, [softmax(256, seed) for seed in range(9)], 9, 256)
    assert block["weights"]["shape"] == [9, 256 * 257 // 2]
    assert size(spec) + size(block) + size(detail_spec(detail(256), 0, 0, whole=True)) < 1_000_000


@pytest.mark.parametrize(("heads", "positions", "sent"), [(9, 256, True), (11, 256, False), (32, 128, True), (1, 257, False)])
def test_a_block_is_sent_whole_where_its_budget_holds_it(heads, positions, sent):
    assert sends_block(heads, positions) == sent
    assert (positions <= WHOLE and heads * positions * (positions + 1) <= BLOCK_BYTES) == sent


def test_the_chosen_heads_pattern_is_sent_alone_where_the_blocks_are_not():
    given = detail(50)
    alone = detail_spec(given, 3, 1, whole=False)
    assert alone["weights"]["shape"] == [1, 50 * 51 // 2]
    assert "weights" not in detail_spec(given, 3, 1, whole=True)
    block = block_spec(3, [softmax(256)] * 11, 11, 256)
    assert "weights" not in block
    assert block["thumbs"]["shape"] == [11, 43, 43]  # tiles of six tokens


def test_a_long_text_is_sent_as_tiles_of_largest_weights_and_strongest_keys():
    given = detail(600)
    attention = given.attention.to_numpy()
    spec = detail_spec(given, 0, 0, whole=False)
    assert "weights" not in spec
    assert (tile_of(600), spec["tiles"]["tile"], spec["tiles"]["shape"]) == (3, 3, [200, 200])
    tiles = decode(spec["tiles"])
    assert tiles[10, 4] == pytest.approx(attention[30:33, 12:15].max(), abs=ROUNDING)
    assert tiles[10, 10] == pytest.approx(np.nanmax(attention[30:33, 30:33]), abs=ROUNDING)
    assert np.isnan(tiles[4, 10])
    keys, weights = decode(spec["edges"]["keys"]), decode(spec["edges"]["weights"])
    assert keys.shape == weights.shape == (600, 8)
    assert weights[500] == pytest.approx(np.sort(attention[500, :501])[::-1][:8], abs=ROUNDING)
    assert attention[500, keys[500].astype(int)] == pytest.approx(weights[500], abs=ROUNDING)
    assert np.isfinite(weights[2]).sum() == 3
    assert size(spec) < 250_000


def test_the_strongest_keys_are_in_order_and_ties_go_to_the_earlier():
    keys, weights = strongest(np.array([[0.2, 0.5, 0.2, np.nan], [0.25, 0.25, 0.25, 0.25]]), 3)
    assert keys.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert weights.tolist() == [[0.5, 0.2, 0.2], [0.25, 0.25, 0.25]]


# -- pages and drawings ---------------------------------------------------------------------------


def state(tokens) -> dict:
    count = len(tokens)
    return {
        "spec": overview_spec(measures(), list(tokens), ranges=RANGES),
        "block": block_spec(2, [softmax(count, seed) for seed in range(4)], 4, count),
        "detail": detail_spec(detail(count), 2, 0, whole=True),
        "selected": {"heads": [0, 2], "token": 1},
        "measure": "rank",
        "values": "attention",
        "direction": "to",
    }


def test_no_address_leads_out_of_the_page():
    page = head_grid_page(state(["a", "b", "c"]), title="t", says="s", source="m")
    assert set(re.findall(r"(?i)\b(?:https?|wss?|ftp):[^\s\"'`)]*", page)) == {SVG_NAMESPACE}
    assert not re.search(r"(?i)@import|url\(|\bimport\s*\(|^\s*import\b|\bfetch\(|XMLHttpRequest", page, re.MULTILINE)


def test_hostile_tokens_make_no_element():
    page = head_grid_page(state(HOSTILE), title=HOSTILE[0], says=HOSTILE[1], source=HOSTILE[2])
    plain = head_grid_page(state(["a"] * len(HOSTILE)), title="t", says="s", source="m")
    assert Reader(page).tags == Reader(plain).tags
    assert len(state_of(page)["spec"]["tokens"]) == len(HOSTILE)


@pytest.mark.parametrize("name", [*SCRIPTS, *STYLES])
def test_every_part_of_the_widget_is_shipped(name):
    assert widget_source(name)


def test_a_drawing_has_the_queries_running_down():
    tokens = [f"w{n}" for n in range(20)]
    spec = head_grid_chart(measures(), detail(20), tokens, measure="rank", limits=None, values="attention")
    heads, cells, scree = spec["plots"]
    assert (heads["kind"], cells["kind"], scree["kind"]) == ("heat_map", "heat_map", "lines")
    assert (cells["down"], cells["y"]["labels"]) == (True, tokens)
    assert cells["values"][0] == [1, *[None] * 19]
    assert cells["values"][7][3] == pytest.approx(np.sqrt(softmax(20)[7, 3]), rel=1e-3)
    assert [line["name"] for line in scree["series"]] == ["this head", "uniform", "identity"]


@pytest.mark.parametrize("values", ["attention", "logit"])
def test_a_drawing_of_a_long_text_has_tiles(values):
    spec = head_grid_chart(measures(), detail(200), ["w"] * 200, measure="skew", limits=None, values=values)
    assert spec["plots"][1]["title"] == "largest of 3 × 3"
    assert np.array(spec["plots"][1]["values"], dtype=float).shape == (67, 67)


def test_drawings_are_of_the_kind_that_was_asked_for():
    drawn = {"measures": measures(), "detail": detail(9), "tokens": HOSTILE[:9], "measure": "share", "limits": (0.0, 1.0),
             "values": "logit"}  # fmt: skip
    assert picture(drawn, {"heads": [1, 3]}).startswith(b"\x89PNG")
    assert b"<svg" in picture(drawn, {"heads": [1, 3]}, "svg")


def test_other_values_and_suffixes_are_refused():
    with pytest.raises(InputError, match="one of attention, logit"):
        head_grid_chart(measures(), detail(5), ["a"] * 5, measure="rank", limits=None, values="weights")
    with pytest.raises(InputError, match=r"ends in '\.gif'"):
        require_suffix("atlas.gif")
