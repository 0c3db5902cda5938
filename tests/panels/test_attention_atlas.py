"""The attention atlas on a small model: heads, tokens and measures by click and by call, and what it says of them."""

from __future__ import annotations

import base64

import numpy as np
import pytest

import lens
from lens.base.errors import InputError
from lens.models import edits
from lens.models.heads import head_states
from lens.panels.attention_atlas import AttentionAtlas
from lens.probes.attention_battery import MEASURES, attention_battery
from tests.models.families import build
from tests.panels.conftest import Gate

TEXT = "w1 w2 w3 w4 w5 w6 w7 w8 w1 w2 w3 w4"


@pytest.fixture(scope="module")
def model(tokenizer):
    return lens.load(build("llama"), tokenizer)


@pytest.fixture(scope="module")
def states(model):
    return head_states(model, model.encode(TEXT))


@pytest.fixture
def panel(model) -> AttentionAtlas:
    return AttentionAtlas(model, TEXT)


def weights(panel: AttentionAtlas) -> np.ndarray:
    """The chosen head's pattern, as the browser gets it."""
    sent, size = panel.chart.block["weights"], panel.summary()["tokens"]
    stored = np.frombuffer(sent["data"], "<u2").reshape(sent["shape"])[panel.summary()["head"]]
    pattern = np.zeros((size, size))
    pattern[np.tril_indices(size)] = np.where(stored == sent["missing"], np.nan, stored * sent["scale"])
    return pattern


# -- what is shown --------------------------------------------------------------------------------


def test_first_sight_is_the_head_with_the_largest_effective_rank(panel, states):
    found, ranks = panel.summary(), attention_battery(states).effective_rank.to_numpy()
    assert ranks[found["block"], found["head"]] == ranks.max()
    assert (found["rank"], found["value"], found["error"]) == (1, round(float(ranks.max()), 3), None)
    assert panel.chart.selected == {"heads": [found["head"], found["block"]], "token": found["token"]}
    off_sink = np.tril(states[found["block"]].pattern(found["head"]), -1)[:, 1:]
    assert off_sink[found["token"]].max() == off_sink.max()
    assert [one["name"] for one in panel.chart.spec["measures"]] == [
        name for name in MEASURES if np.isfinite(panel.heads[name]).any()
    ]


def test_the_browser_gets_the_chosen_heads_pattern(panel, states):
    panel.set(block=2, head=3)
    assert weights(panel) == pytest.approx(states[2].pattern(3), abs=1e-5)
    assert (panel.chart.detail["block"], panel.chart.detail["head"], panel.chart.block["block"]) == (2, 3, 2)


def test_what_it_says_are_the_batterys_numbers(panel):
    panel.set(block=1, head=2, measure="first_token")
    found, here = panel.summary(), panel.heads.sel(block=1, head=2)
    rank = 1 + int((panel.heads.first_token > here.first_token).sum())
    assert (found["value"], found["rank"]) == (round(float(here.first_token), 3), rank)
    assert f"{found['value']:.3g}, number {rank} of 12 heads" in found["says"]
    assert f"{100 * float(here.self_attention):.0f} % to itself" in found["says"]
    sinks = int((panel.heads.first_token > 0.5).sum())
    assert found["says"].endswith(f"{sinks} of the 12 heads give the first token more than half.")
    panel.set(measure="effective_rank")
    uniform = panel.detail.attrs["uniform_effective_rank"]
    assert f"uniform attention has {uniform:.3g}, attention to the token itself 12." in panel.summary()["says"]


@pytest.mark.parametrize("direction", ["to", "by"])
def test_the_strongest_ties_of_a_token_are_told(panel, states, direction):
    panel.set(block=0, head=1, token=5, direction=direction)
    found, pattern = panel.summary(), states[0].pattern(1)
    line = pattern[5] if direction == "to" else pattern[:, 5]
    order = np.argsort(-line, kind="stable")[:5]
    assert found["strongest"] == [(int(n), f"w{n % 8 + 1}", round(float(line[n]), 3)) for n in order if line[n] > 0]
    assert found["token_text"] == "w6"


def test_without_the_first_token_its_share_is_given_back(panel, states):
    panel.set(block=1, head=0, drop_sink=True)
    sent, whole = weights(panel), states[1].pattern(0)
    assert np.isnan(sent[:, 0]).all()
    assert sent[4, 3] == pytest.approx(whole[4, 3] / (1 - whole[4, 0]), abs=1e-5)
    expected = attention_battery(states, drop_sink=True)
    assert panel.summary()["effective_rank"] == round(float(expected.effective_rank[1, 0]), 3)
    assert panel.chart.spec["note"] == "the first token is left out, its share given back"


# -- choosing -------------------------------------------------------------------------------------


def test_clicks_choose_heads_and_tokens(panel):
    panel.chart.selected = {**panel.chart.selected, "heads": [3, 1]}
    assert (panel.summary()["block"], panel.summary()["head"]) == (1, 3)
    panel.chart.selected = {**panel.chart.selected, "token": 7}
    assert panel.summary()["token"] == 7
    assert panel.chart.selected == {"heads": [3, 1], "token": 7}


def test_a_rank_chosen_in_the_scree_plot_stays(panel):
    panel.chart.selected = {**panel.chart.selected, "scree": 4}
    panel.set(block=0, head=0)
    assert panel.chart.selected["scree"] == 4


def test_the_widgets_own_controls_are_settings_of_the_panel(panel):
    panel.chart.measure = "mean_entropy"
    panel.chart.values = "logit"
    panel.chart.direction = "by"
    found = panel.summary()
    assert (found["measure"], found["values"], found["direction"]) == ("mean_entropy", "logit", "by")
    assert "nats" in found["says"]


def test_another_head_costs_no_forward_pass_and_sends_only_what_is_new(panel, model):
    panel.set(block=1, head=0)
    spec, block, detail = panel.chart.spec, panel.chart.block, panel.chart.detail
    gate = Gate(model)
    try:
        panel.set(head=1)
        assert panel.chart.spec is spec
        assert panel.chart.block is block
        assert panel.chart.detail is not detail
        panel.set(block=2, drop_sink=True)
        assert gate.blocks_run == []
        panel.set(text="w3 w4 w5 w6")
        assert gate.blocks_run == [0, 1, 2] * 2  # with one token for the estimate, then with the text
    finally:
        gate.remove()


def test_another_text_keeps_the_head_and_finds_a_token(panel):
    panel.set(block=0, head=2, token=11)
    panel.set(text="w9 w8 w7 w6 w5")
    found = panel.summary()
    assert (found["block"], found["head"], found["tokens"]) == (0, 2, 5)
    assert 1 <= found["token"] <= 4
    assert panel.chart.pinned is False


def test_an_edit_of_the_model_is_seen(panel, model):
    before = panel.summary()["value"]
    with edits.rope_base(model, 50.0):
        panel.set(length=64)
        assert panel.summary()["value"] != before
    panel.set(length=32)
    assert panel.summary()["value"] == before


# -- long texts and other models ------------------------------------------------------------------


def test_of_a_longer_text_the_beginning_is_read_and_the_rest_told(panel):
    panel.set(length=5)
    found = panel.summary()
    assert (found["tokens"], found["left_out"]) == (5, 7)
    assert panel.chart.spec["note"] == "the last 7 tokens of the text were not read"
    assert dict(panel.children[0].children[2].options)["first 5 tokens"] == 5


@pytest.fixture(scope="module")
def patient(tokenizer):
    """A model of long texts."""
    module = build("llama")
    module.config.max_position_embeddings = 1024
    return lens.load(module, tokenizer)


def test_more_tokens_than_the_picture_holds_are_sent_as_tiles(patient):
    panel = AttentionAtlas(patient, " ".join(f"w{n % 100}" for n in range(270)), length=512)
    assert panel.summary()["tokens"] == 270
    assert "weights" not in panel.chart.block
    assert panel.chart.detail["tiles"]["shape"] == [135, 135]
    assert panel.chart.spec["note"] == "the map shows the largest of 2 × 2 weights, the text the 8 strongest keys of each query"


def test_beyond_512_tokens_only_the_chosen_head_has_a_spectrum(patient):
    panel = AttentionAtlas(patient, " ".join(f"w{n % 100}" for n in range(520)), length=1024)
    found = panel.summary()
    assert (found["tokens"], found["measure"], found["effective_rank"]) == (520, "mean_entropy", None)
    assert "effective_rank" not in panel.heads
    assert panel.chart.detail["scree"]["values"]["shape"] == [3, 520]
    assert panel.chart.spec["note"].endswith("beyond 512 tokens no spectra of all heads, only the chosen one's")
    assert found["error"] is None


def test_windows_and_learned_sinks_are_shown_as_the_model_has_them(tokenizer):
    model = lens.load(build("gpt-oss"), tokenizer)
    panel = AttentionAtlas(model, TEXT, block=0, head=0)
    sent = weights(panel)
    assert np.isnan(sent[9, 5])
    assert np.nansum(sent[9]) < 1
    assert panel.summary()["error"] is None


# -- errors, pictures and files -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": ""}, "at least one character"),
        ({"text": "w1 w2"}, "4 or more"),
        ({"text": 7}, "a str"),
        ({"length": 1_000_000}, "4 to 1,024 tokens"),
        ({"block": 9}, "blocks 0 to 2, heads 0 to 3"),
        ({"token": 12}, "a position from 0 to 11"),
        ({"measure": "beauty"}, "one of effective_rank"),
        ({"values": "weights"}, "one of attention, logit"),
        ({"direction": "up"}, "one of to, by"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_line_and_the_picture_stays(panel, change, said):
    before = panel.chart.detail
    panel.set(**change)
    assert said in panel.summary()["error"]
    assert panel.chart.detail is before
    panel.set(text=TEXT, length=128)
    panel.set(head=1)
    assert panel.summary()["error"] is None


def test_a_picture_stands_where_there_is_no_kernel(panel):
    bundle = panel._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    image = data["image/png"]
    assert (base64.b64decode(image) if isinstance(image, str) else image).startswith(b"\x89PNG")
    assert repr(panel) == f"AttentionAtlas(model={panel._settings['model'].name!r}, text={TEXT!r})"


@pytest.mark.parametrize("suffix", [".html", ".svg", ".csv", ".nc"])
def test_what_is_shown_can_be_written(panel, tmp_path, suffix):
    path = panel.export(tmp_path / f"atlas{suffix}")
    assert path.stat().st_size > 1000
    if suffix == ".html":
        assert panel.summary()["says"].split(";")[0] in path.read_text(encoding="utf-8")
    if suffix == ".csv":
        assert len(path.read_text().splitlines()) == 1 + 12


def test_other_files_are_refused(panel, tmp_path):
    with pytest.raises(InputError, match=r"\.gif"):
        panel.export(tmp_path / "atlas.gif")
