"""The depth laboratory: what it makes of the model, shows and says, and that the model is given back."""

from __future__ import annotations

import numpy as np
import pytest

import lens
from lens.figures.depth_lab import depth_lab_chart
from lens.models.model import Model
from lens.panels.depth_lab import DepthLab
from lens.probes.depth_edits import DepthEdit, EditedTexts
from lens.probes.depth_text import text_outcome, text_sweep, underrated_block
from tests.models.families import build
from tests.models.test_edits import traces

TEXT = " ".join(f"w{(11 * i) % 120}" for i in range(20))


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    return lens.load(build("llama"), tokenizer)


@pytest.fixture(scope="module")
def panel(model) -> DepthLab:
    return DepthLab(model, TEXT)


def by_hand(model: Model, kind: str, blocks: tuple[int, ...]) -> float:
    read = EditedTexts(model, [model.encode(TEXT)])
    return float(text_outcome(read, [DepthEdit(kind, blocks)]).measures.loss_after[0])


def test_first_sight_is_the_underrated_block_removed(panel, model):
    panel.set(edit="removed", blocks=None)
    read = EditedTexts(model, [model.encode(TEXT)])
    _, blocks = text_sweep(read, "removed")
    assert np.array_equal(panel.blocks.kl_to_original, blocks.kl_to_original)
    ratio = (blocks.kl_to_original / blocks.block_influence).to_numpy()
    block = underrated_block(blocks)
    assert ratio[block] == ratio.max()
    summary = panel.summary()
    assert summary["error"] is None
    assert summary["blocks"] == [block, block]
    assert summary["loss_after"] == pytest.approx(float(blocks.loss_after[block]), abs=1e-3)
    assert f"With block {block} removed, this text costs {summary['loss_after']:.2f} nats" in summary["says"]
    assert panel.chart.selected == {"blocks": block}
    assert model.edits == ()


@pytest.mark.parametrize(
    ("edit", "blocks", "shown"),
    [
        ("removed", (0, 1), (0, 1)),
        ("swapped", (0, 2), (0, 2)),
        ("swapped", (1, 1), (1, 2)),
        ("parallel", (0, 2), (0, 2)),
        ("parallel", (2, 2), (1, 2)),
    ],
)
def test_a_span_is_what_it_says(panel, model, edit: str, blocks: tuple[int, int], shown: tuple[int, int]):
    panel.set(edit=edit, blocks=blocks)
    summary = panel.summary()
    assert summary["blocks"] == list(shown)
    assert panel._controls["blocks"].value == shown
    whole = shown if edit == "swapped" else tuple(range(shown[0], shown[1] + 1))
    assert summary["loss_after"] == pytest.approx(by_hand(model, edit, whole), abs=1e-3)
    outcome, place = panel._made(panel._shown(), panel._view)
    words = panel._shown().read.next_words(outcome.states[place], 4)
    name = {"removed": "removed", "swapped": "swapped", "parallel": "in parallel"}[edit]
    assert name in summary["says"]
    spec = depth_lab_chart(panel.blocks, words, kind=edit, chosen=f"blocks {shown[0]} and {shown[1]} {name}", kl=1.0)
    assert panel.chart.spec["plots"][2] == spec["plots"][2]
    assert panel.chart.spec["plots"][0] == spec["plots"][0]
    one_dot = shown[1] - shown[0] == (0 if edit == "removed" else 1)
    assert len(panel.chart.spec["plots"][1]["rules"]) == (0 if one_dot else 1)


def test_next_words_are_those_of_the_two_models(model):
    ids = model.encode(TEXT)
    read = EditedTexts(model, [ids])
    words = read.next_words(read.last_state([DepthEdit("removed", (1,))]), 3)
    with lens.edits.remove_blocks(model, [1]):
        edited = model.run(ids).logits[-1].softmax(-1)
    plain = model.run(ids).logits[-1].softmax(-1)
    names = [model.vocabulary[i] for i in plain.topk(3).indices]
    assert words.token.to_numpy().tolist()[:3] == names
    places = [model.vocabulary.index(token) for token in words.token.to_numpy()]
    assert np.allclose(words.probability.sel(read_from="model"), plain[places], atol=1e-5)
    assert np.allclose(words.probability.sel(read_from="edited"), edited[places], atol=1e-5)


def test_a_click_chooses_a_block_and_the_model_is_given_back(panel, model):
    before = traces(model)
    panel.set(edit="removed", blocks=(0, 1))
    panel.chart.selected = {"blocks": 2}
    assert panel.summary()["blocks"] == [2, 2]
    panel._controls["edit"].value = "parallel"
    assert panel.summary()["blocks"] == [1, 2]
    assert traces(model) == before


def test_maps_are_fitted_when_they_are_asked_for(panel, model, monkeypatch):
    asked = []

    def maps(_model, **_options):
        asked.append(1)
        return dict.fromkeys(range(3), lambda states: 2 * states)

    monkeypatch.setattr("lens.panels.depth_lab.adjacent_maps", maps)
    panel.set(edit="replaced", blocks=(1, 1))
    panel.set(blocks=(0, 1))
    assert asked == [1]
    assert panel.summary()["error"] is None
    assert "blocks 0 and 1 replaced" in panel.summary()["says"]


def test_a_held_out_text_fills_the_box(model, monkeypatch):
    texts = lens.corpus([" ".join(f"w{(7 * i + 3 * n) % 120}" for i in range(100)) for n in range(40)])
    monkeypatch.setattr("lens.panels.depth_lab.corpus", lambda *_, **__: texts)
    panel = DepthLab(model, TEXT)
    panel._button.click()
    assert panel.summary()["error"] is None
    shown = panel._top["text"].value
    assert texts.part("test")[0].text.startswith(shown)
    assert len(shown) > 200
    panel._button.click()
    panel.wait()
    assert texts.part("test")[1].text.startswith(panel._top["text"].value)


def test_refused_in_one_line(panel):
    for wrong in ({"edit": "turned"}, {"blocks": (2, 3)}, {"blocks": (1, 0)}, {"blocks": 1}, {"text": "w1"}):
        panel.set(**wrong)
        assert "Try:" in panel.summary()["error"]
        panel.set(edit="removed", blocks=(1, 1), text=TEXT)
        assert panel.summary()["error"] is None
