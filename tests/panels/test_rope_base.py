"""The rotary-base panel: what it shows is the model under the edit, and the model itself is never left turned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lens
from lens.figures.logit_lens import grid_spec
from lens.figures.rope_base import head_chart, loss_chart
from lens.models import edits
from lens.models.heads import head_states
from lens.models.rotary import rotaries
from lens.panels.rope_base import LONGEST, RopeBase, _bases
from lens.probes.rope_turn import turned_head
from tests.models.families import build, word_tokenizer
from tests.panels.conftest import Gate, InThread

TEXT = "w1 w2 w3 w1 w2 w4 w5"
TRAINED = 10_000.0


@pytest.fixture
def panel(tiny) -> RopeBase:
    return RopeBase(tiny, TEXT, base=30.0)


@pytest.fixture
def frequencies(tiny):
    """The buffers that an edit changes, as they are now; called again, whether they still hold the same bits."""
    before = {name: value.clone() for name, value in tiny.module.named_buffers()}
    logits = tiny.run([5, 6, 7]).logits

    def unchanged() -> bool:
        now = dict(tiny.module.named_buffers())
        same = all(torch.equal(now[name], value) for name, value in before.items())
        return same and tiny.edits == () and torch.equal(tiny.run([5, 6, 7]).logits, logits)

    return unchanged


def turned(model, base, text=TEXT):
    with edits.rope_base(model, base):
        run = model.run(text, attention=True)
        tables = {block: one for one in rotaries(model) for block in one.blocks}
        return run, lens.logit_lens(run), {block: (one.theta, one.attention_factor) for block, one in tables.items()}


# -- what is shown --------------------------------------------------------------------------------


def test_pictures_are_those_of_the_edited_model(panel, tiny):
    panel.set(block=1, head=2)
    run, readings, tables = turned(tiny, 30.0)
    trained = tiny.run(TEXT, attention=True)
    head = turned_head(trained, run, head_states(tiny, TEXT)[1], 2, *tables[1])
    visited = {30.0: float(readings.next_surprisal[-1, :-1].mean())}
    assert panel.chart.spec == loss_chart(lens.logit_lens(trained), readings, visited, TRAINED)
    assert panel.heads.spec == head_chart(head, "turned")
    assert panel.grid.spec == grid_spec(readings)
    panel.set(shown="trained")
    assert panel.grid.spec == grid_spec(lens.logit_lens(trained))


def test_the_trained_base_changes_no_bit(panel, tiny):
    panel.set(base=TRAINED)
    result = panel._result
    assert torch.equal(result.run.logits, result.trained.run.logits)
    assert torch.equal(result.run.attention, result.trained.run.attention)
    summary = panel.summary()
    assert summary["loss"] == summary["trained_loss"]
    assert summary["other_first_words"] == 0
    assert summary["says"].startswith("At 10,000, the base that the model was trained with")
    assert summary["attention"]["moved"]["whole model turned"] == 0


def test_one_layer_alone_is_computed_without_a_run_of_the_model(panel, tiny):
    gate = Gate(tiny)
    try:
        panel.set(beside="alone", block=2, head=3)
        panel.set(block=0, beside="difference")
        assert gate.prompts == []
    finally:
        gate.remove()


def test_in_the_first_block_one_layer_alone_is_the_whole_model(panel):
    panel.set(block=0, head=1)
    whole, alone = panel._result.head(0, 1).attention[1:].to_numpy()
    assert alone == pytest.approx(whole, abs=1e-5)
    later = panel._result.head(2, 1).attention[1:].to_numpy()
    assert np.abs(later[0] - later[1]).max() > 1e-3


def test_a_text_is_run_as_trained_once(panel, tiny):
    gate = Gate(tiny)
    try:
        panel.set(base=100.0)
        panel.set(base=300.0)
        assert gate.prompts == [tiny.encode(TEXT)] * 2
        assert sorted(panel._result.trained.visited) == [30, 100, 300]
    finally:
        gate.remove()


def test_the_summary_is_plain_rounded_data(panel):
    panel.set(position=3, block=1, head=0)
    summary = panel.summary()
    readings = panel._result.lens
    assert (summary["base"], summary["trained_base"], summary["tokens"]) == (30, TRAINED, 7)
    assert summary["loss"] == round(float(readings.next_surprisal[-1, :-1].mean()), 3)
    assert summary["selected"] == {"position": 3, "after": "w1"}
    assert summary["answer"][1] == round(float(np.exp(readings.logprob[-1, 3, 0])), 3)
    assert set(summary["attention"]) == {"moved", "prefix_matching", "previous_token", "first_token"}
    assert "from 10,000 to 30" in summary["says"]
    assert summary["error"] is None


def test_first_sight_is_the_token_that_suffers_most_and_the_head_that_follows_repeats(panel):
    readings, trained = panel._result.lens, panel._result.trained.lens
    change = (readings.next_surprisal - trained.next_surprisal)[-1, :-1]
    assert panel.summary()["selected"]["position"] == int(change.to_numpy().argmax())
    patterns = panel._result.trained.run.attention
    follows = [(3, 1), (4, 2), (5, 3)]  # the second w1 and w2 repeat; w4 does not
    score = sum(patterns[:, :, query, key] for query, key in follows[:2])
    block, head = divmod(int(score.argmax()), patterns.shape[1])
    assert (panel.summary()["block"], panel.summary()["head"]) == (block, head)


def test_smollm2_forgets_the_name_it_has_just_read(smollm2):
    panel = RopeBase(smollm2)
    summary = panel.summary()
    assert (summary["base"], summary["trained_base"]) == (100, 100_000)
    assert summary["loss"] > summary["trained_loss"] + 0.5
    follows = summary["attention"]["prefix_matching"]
    assert follows["trained"] > 0.5
    assert follows["whole model turned"] < 0.05
    assert "what followed the same word before" in summary["says"]
    panel.set(base=1e6)
    assert panel.summary()["loss"] < summary["trained_loss"] + 0.1
    panel.set(text="word " * (LONGEST + 1))
    assert f"2 to {LONGEST}" in panel.summary()["error"]


# -- controls -------------------------------------------------------------------------------------


def test_the_slider_has_the_trained_base_to_the_bit():
    values = [value for _, value in _bases(500_000.0, 100.0)]
    assert 500_000.0 in values
    assert (np.diff(np.log10(values)) > 0.035).all()
    assert dict(_bases(500_000.0, 100.0))["as trained"] == 500_000.0
    assert (values[0], values[-1]) == (1e2, 1e9)
    assert 123.4 in [value for _, value in _bases(10_000.0, 123.4)]


def test_a_base_from_a_cell_stands_on_the_slider_and_the_button_leads_back(panel):
    _, (slider, back), controls = (row.children for row in panel.children[:3])
    panel.set(base=12_345.0)
    assert slider.value == 12_345
    slider.value = 1e6
    assert panel.summary()["base"] == 1e6
    back.click()
    assert panel.summary()["base"] == TRAINED
    assert slider.label == "as trained"
    assert [control.description for control in controls[:2]] == ["block", "head"]


def test_a_click_in_one_picture_selects_in_all(panel):
    panel.chart.selected = {**panel.chart.selected, "position": 2}
    assert panel.summary()["selected"]["position"] == 2
    assert panel.grid.selected[1] == 2
    assert panel.grid.selected == [3, 2]
    for layer, position in ((1, 4), (0, 3)):
        panel.grid.set_state({"selected": [layer, position]})
        assert panel.summary()["selected"]["position"] == position
        assert panel.chart.selected["position"] == position
        assert panel.grid.selected == [layer, position]
    panel.heads.selected = {"attention": [1, 5]}
    assert panel.summary()["selected"]["position"] == 5
    assert panel.heads.selected == {"attention": [1, 5]}
    panel.set(position=6)
    assert panel.heads.selected == {}
    assert "position" not in panel.chart.selected  # nothing is predicted after the last token


def test_a_click_on_a_base_goes_back_to_it(panel):
    panel.set(base=1e6)
    panel.chart.selected = {**panel.chart.selected, "base": 30}
    assert panel.summary()["base"] == 30
    panel.chart.selected = {**panel.chart.selected, "base": 10_000}
    assert panel.summary()["base"] == TRAINED


def test_the_grid_shows_the_trained_words_on_request(panel, tiny):
    panel._on_message(panel.grid, {"type": "choice", "name": "shown", "value": "trained"}, [])
    assert panel.summary()["shown"] == "trained"
    assert panel.grid.spec == grid_spec(lens.logit_lens(tiny.run(TEXT, attention=True)))
    assert panel.grid.choices[0]["value"] == "trained"


def test_a_word_of_the_grid_is_followed_in_the_model_that_is_shown(panel, tiny):
    run, _, _ = turned(tiny, 30.0)
    for shown, source in (("turned", run), ("trained", tiny.run(TEXT, attention=True))):
        panel.set(shown=shown)
        panel.grid.set_state({"follow": {"position": 4, "token_id": 9, "word": "w5"}})
        panel.wait()
        expected = np.exp(lens.follow_token(source, 9, 4).logprob[:, 0].to_numpy())
        assert panel.grid.trajectory["probability"] == pytest.approx(expected.tolist(), rel=1e-4)
        assert (panel.grid.trajectory["position"], panel.grid.trajectory["word"]) == (4, "w5")
    panel.grid.set_state({"follow": {}})
    panel.wait()
    assert panel.grid.trajectory == {}


def test_another_text_chooses_its_own_position(panel):
    panel.set(position=6)
    panel.set(text="w7 w8 w9")
    assert panel.summary()["selected"]["position"] < 3
    assert panel.summary()["error"] is None


# -- the model is given back ----------------------------------------------------------------------


def test_after_an_exception_inside_the_turned_run_every_bit_is_back(panel, tiny, frequencies):
    def fail(_module, _args):
        if tiny.edits:
            raise RuntimeError("in the middle")

    handle = tiny.anatomy.blocks[1].module.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="in the middle"):
            panel.set(base=77.0)
    finally:
        handle.remove()
    assert frequencies()
    panel.set(base=77.0)
    assert panel.summary()["base"] == 77


def test_cancel_stops_at_the_next_block_and_every_bit_is_back(panel, tiny, frequencies):
    before, gate = panel.chart.spec, Gate(tiny)
    try:
        gate.shut()
        panel.post(base=77.0)
        gate.wait_until_reached()
        panel.cancel()
        gate.open()
        assert panel.summary()["error"] == "Cancelled. The picture is still the one before."
        assert gate.blocks_run == [0, 1]
        assert panel.chart.spec == before
        assert panel.summary()["base"] == 30
        assert frequencies()
    finally:
        gate.remove()


def test_of_two_overlapping_clicks_the_second_counts_and_every_bit_is_back(panel, tiny, frequencies):
    gate = Gate(tiny)
    slider = panel.children[1].children[0]
    values = [value for _, value in slider.options]
    try:
        gate.shut()
        slider.set_state({"index": 20})
        gate.wait_until_reached()
        slider.set_state({"index": 40})
        gate.open()
        assert panel.summary()["base"] == values[40]
        assert gate.blocks_run == [0, 1, 0, 1, 2]
        assert frequencies()
    finally:
        gate.remove()


def test_another_thread_never_runs_the_turned_model(panel, tiny, frequencies):
    gate = Gate(tiny)
    alone = tiny.run(TEXT).logits
    try:
        gate.shut()
        panel.post(base=77.0)
        gate.wait_until_reached()
        cell = InThread(lambda: tiny.run(TEXT).logits)
        assert cell.running
        gate.open()
        assert torch.equal(cell.result(), alone)
        panel.wait()
    finally:
        gate.remove()
    assert frequencies()


def test_two_panels_on_one_model_do_not_disturb_each_other(panel, tiny, frequencies):
    other = RopeBase(tiny, TEXT, base=1e6)
    for one, base in ((panel, 55.0), (other, 1e7), (panel, 1e8), (other, 44.0)):
        one.post(base=base)
    run, _, _ = turned(tiny, 1e8)
    assert (panel.summary()["base"], other.summary()["base"]) == (1e8, 44)
    assert torch.equal(panel._result.run.logits, run.logits)
    assert frequencies()


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": 0.5}, "base"),
        ({"base": float("nan")}, "base"),
        ({"text": "w1"}, "The text has 1 tokens"),
        ({"text": "w1 " * 65}, "at most 64"),
        ({"text": 7}, "The text is a int"),
        ({"block": 3}, "The block is 3"),
        ({"head": -1}, "The head is -1"),
        ({"position": 7}, "The position is 7"),
        ({"beside": "mirror"}, "The setting beside is 'mirror'"),
        ({"shown": "none"}, "The setting shown is 'none'"),
    ],
)
def test_refusals_are_one_line_and_the_picture_stays(panel, changes, message, frequencies):
    before = panel.chart.spec
    panel.set(**changes)
    assert message in panel.summary()["error"]
    assert panel.chart.spec == before
    assert frequencies()


def test_a_model_without_rotary_embeddings_is_refused_in_the_panel():
    panel = RopeBase(lens.load(build("gpt2"), word_tokenizer()), TEXT)
    assert "rotary" in panel.summary()["error"]


def test_a_model_of_which_some_blocks_do_not_rotate_is_shown():
    panel = RopeBase(lens.load(build("smollm3"), word_tokenizer()), TEXT, base=30.0, block=1, head=0)
    head = panel._result.head(1, 0)
    assert head.attention[2].to_numpy() == pytest.approx(head.attention[0].to_numpy(), abs=1e-4)
    assert float(head.moved[1]) > 0


def test_hostile_tokens_are_text(tiny):
    panel = RopeBase(tiny, TEXT, base=30.0)
    panel.set(text="<img src=x onerror=alert(1)> w1 <b>")
    assert "<img" not in panel._says.value + panel._line.value + panel._chip.value
