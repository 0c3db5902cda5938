"""What all panels promise: the newest request wins, Cancel gets through, nothing deadlocks, bugs come out."""

from __future__ import annotations

import threading
import time

import ipywidgets as widgets
import numpy as np
import pytest

import lens
from lens import panels
from lens.base.progress import Step
from lens.panels import LogitLens
from tests.models.families import build
from tests.panels.conftest import PATIENCE, Controls, InThread


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "never happens"
        time.sleep(0.005)


@pytest.mark.parametrize("name", panels._PUBLIC)
def test_no_panel_hides_what_its_widget_tells_the_page(name: str):
    """A method called `_model_name`, say, would leave the page without the class to draw."""
    panel = getattr(panels, name)
    if isinstance(panel, type):
        hidden = [trait for trait in widgets.VBox.class_trait_names() if trait not in panel.class_trait_names()]
        assert hidden == []


# -- the newest request wins ----------------------------------------------------------------------


def test_an_event_returns_before_the_model_has_run(panel, controls, gate):
    gate.shut()
    controls.text.set_state({"value": "w5 w6"})
    gate.wait_until_reached()
    assert panel.grid.spec["input"] == ["w1", "w2", "w3", "w4"]
    gate.open()
    assert panel.summary()["text"] == "w5 w6"


@pytest.mark.parametrize("events", [["w5 w6", "w7"], ["w5 w6", "w7", "w8", "w9 w9"]])
def test_only_the_newest_of_many_events_is_computed_and_shown(panel, controls, gate, tiny, events):
    shown = []
    panel.grid.observe(lambda change: shown.append(change["new"]["input"]), "spec")
    gate.shut()
    controls.text.set_state({"value": events[0]})
    gate.wait_until_reached()
    for text in events[1:]:
        controls.text.set_state({"value": text})
    gate.open()
    assert panel.summary()["text"] == events[-1]
    assert gate.prompts == [tiny.encode(events[0]), tiny.encode(events[-1])]
    assert shown == [events[-1].split()]
    assert controls.text.value == events[-1]


def test_an_overtaken_run_stops_at_its_next_block(panel, controls, gate):
    gate.shut()
    controls.text.set_state({"value": "w5 w6"})
    gate.wait_until_reached()
    controls.text.set_state({"value": "w7"})
    gate.open()
    panel.wait()
    assert gate.blocks_run == [0, 1, 0, 1, 2]


def test_a_cell_that_is_overtaken_by_the_reader_returns_quietly(panel, controls, gate):
    gate.shut()
    cell = InThread(lambda: panel.set(text="w5"))
    gate.wait_until_reached()
    controls.text.set_state({"value": "w6"})
    gate.open()
    cell.result()
    assert panel.summary()["text"] == "w6"
    assert panel.error is None


def test_a_request_that_waits_for_its_turn_can_be_overtaken_too(panel, gate, tiny):
    """The first is in a block, the second already in the worker's hands, the third is the one that counts."""
    gate.shut()
    first = InThread(lambda: panel.set(text="w5"))
    gate.wait_until_reached()
    panel.post(text="w6")
    until(lambda: panel._waiting is None)
    panel.post(text="w7")
    gate.open()
    first.result()
    assert panel.summary()["text"] == "w7"
    assert gate.prompts == [tiny.encode("w5"), tiny.encode("w7")]


def test_a_request_made_while_the_picture_changes_wins(panel, controls):
    typed = iter(["w8 w9"])
    panel.grid.observe(lambda _: [controls.text.set_state({"value": text}) for text in typed], "spec")
    panel.set(text="w5 w6")
    assert panel.summary()["text"] == "w8 w9"
    assert controls.text.value == "w8 w9"


def test_a_text_and_a_word_to_follow_in_quick_succession_are_both_honoured(panel, gate, tiny):
    gate.shut()
    panel.post(text="w5 w6 w7")
    gate.wait_until_reached()
    panel.post(follow="w9")
    gate.open()
    assert panel.summary()["text"] == "w5 w6 w7"
    expected = lens.follow_token(tiny.run("w5 w6 w7"), "w9", panel.grid.selected[1])
    assert panel.grid.trajectory["word"] == "w9"
    assert panel.grid.trajectory["probability"] == np.exp(expected.logprob.to_numpy()[:, 0]).tolist()


def test_views_that_were_asked_for_during_a_run_are_all_honoured(panel, gate):
    gate.shut()
    panel.post(text="w5 w6 w7")
    gate.wait_until_reached()
    panel.post(colour="entropy")
    panel.post(stride=3)
    panel.post(selected=(0, 1))
    gate.open()
    summary = panel.summary()
    assert (summary["text"], summary["colour"], summary["stride"]) == ("w5 w6 w7", "entropy", 3)
    assert summary["selected"] == {"layer": 0, "after": "w6"}


def test_a_word_is_followed_where_it_was_chosen_though_the_reader_walks_on(panel):
    panel.set(selected=(1, 0))
    panel.grid.set_state({"follow": {"position": 0, "token_id": 9, "word": "w5"}, "selected": [1, 2]})
    panel.wait()
    assert panel.grid.trajectory["position"] == 0


def test_a_word_let_go_before_its_answer_stays_let_go(panel, tiny):
    with tiny.lock.hold("a cell"):
        panel.grid.set_state({"follow": {"position": panel.grid.selected[1], "token_id": 9, "word": "w5"}})
        until(lambda: panel._waiting is None)
        panel.grid.set_state({"follow": {}, "trajectory": {}})
    panel.wait()
    assert panel.grid.trajectory == {}


def test_all_events_of_a_panel_share_one_worker(panel):
    before = threading.active_count()
    for text in ("w5", "w6", "w7"):
        panel.post(text=text)
        panel.wait()
    assert threading.active_count() == before + 1


# -- cancel ---------------------------------------------------------------------------------------


def test_cancel_stops_at_the_next_block_and_leaves_picture_and_model_alone(panel, controls, gate, hooks):
    before, hooked = panel.dataset, hooks()
    gate.shut()
    cell = InThread(lambda: panel.set(text="w5 w6"))
    gate.wait_until_reached()
    controls.cancel.click()
    gate.open()
    cell.result()
    assert gate.blocks_run == [0, 1]
    assert panel.dataset is before
    assert hooks() == hooked
    assert panel.summary()["error"] == "Cancelled. The picture is still the one before."


def test_cancel_reaches_the_worker(panel, controls, gate, hooks):
    before, hooked = panel.dataset, hooks()
    gate.shut()
    controls.text.set_state({"value": "w5 w6"})
    gate.wait_until_reached()
    panel.cancel()
    gate.open()
    assert panel.summary()["text"] == "w1 w2 w3 w4"
    assert panel.dataset is before
    assert hooks() == hooked
    assert controls.text.value == "w5 w6"


def test_cancel_reaches_a_request_that_waits_for_its_turn(panel, gate):
    gate.shut()
    first = InThread(lambda: panel.set(text="w5"))
    gate.wait_until_reached()
    panel.post(text="w6")
    until(lambda: panel._waiting is None)
    panel.cancel()
    gate.open()
    first.result()
    assert panel.summary()["text"] == "w1 w2 w3 w4"


def test_cancel_stops_a_download_between_two_of_its_reports(panel):
    reports = []

    def fetch(_source, progress):
        for done in range(3):
            progress(Step(done, 3, "B", "Downloading"))
            reports.append(done)
            panel.cancel()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lens.panels.logit_lens.load", fetch)
        panel.set(model="somewhere")
    assert reports == [0]
    assert panel.summary()["error"] == "Cancelled. The picture is still the one before."


def test_what_was_cancelled_can_be_asked_for_again(panel, gate):
    gate.shut()
    cell = InThread(lambda: panel.set(text="w5 w6"))
    gate.wait_until_reached()
    panel.cancel()
    gate.open()
    cell.result()
    panel.set(text="w5 w6")
    assert panel.summary()["text"] == "w5 w6"
    assert panel.error is None


def test_cancel_without_a_run_changes_nothing(panel, controls):
    controls.cancel.click()
    panel.set(text="w5")
    assert panel.summary()["text"] == "w5"
    assert panel.error is None


def test_a_run_shows_what_runs_and_afterwards_nothing_of_it_is_left(panel, controls, gate, monkeypatch):
    monkeypatch.setattr("lens.panels.panel._REPORT_EVERY", 0.0)
    monkeypatch.setattr("lens.panels.panel._BAR_AFTER", 0.0)
    gate.shut()
    controls.text.set_state({"value": "w5 w6"})
    gate.wait_until_reached()
    assert (controls.cancel.layout.display, controls.bar.layout.display) == ("", "")
    assert "running" in controls.chip.value
    assert panel.grid.busy["label"] == "running"
    gate.open()
    panel.wait()
    assert (controls.cancel.layout.display, controls.bar.layout.display) == ("none", "none")
    assert "running" not in controls.chip.value
    assert panel.grid.busy == {}


def test_after_cancel_nothing_says_that_the_model_runs(panel, controls, gate, monkeypatch):
    monkeypatch.setattr("lens.panels.panel._REPORT_EVERY", 0.0)
    gate.shut()
    controls.text.set_state({"value": "w5 w6"})
    gate.wait_until_reached()
    panel.cancel()
    gate.open()
    panel.wait()
    assert controls.cancel.layout.display == "none"
    assert "running" not in controls.chip.value
    assert panel.grid.busy == {}


# -- mistakes and bugs in the worker --------------------------------------------------------------


def test_a_readers_mistake_becomes_the_line_and_the_text_stays_in_its_box(panel, controls):
    before = panel.dataset
    controls.text.set_state({"value": ""})
    assert panel.summary()["error"] == "The text is empty. Needed: at least one character. Try: typing a sentence."
    assert panel.dataset is before
    assert controls.text.value == ""


def test_a_bug_in_the_worker_comes_out_of_the_next_summary_once(panel, controls, tiny):
    def broken(_module, _args) -> None:
        raise ZeroDivisionError("a <b>bug</b>")

    handle = tiny.anatomy.blocks[0].module.register_forward_pre_hook(broken)
    controls.text.set_state({"value": "w5"})
    with pytest.raises(ZeroDivisionError, match="bug"):
        panel.summary()
    assert "Internal error: ZeroDivisionError: a &lt;b&gt;bug&lt;/b&gt;" in controls.line.value
    assert panel.summary()["text"] == "w1 w2 w3 w4"
    handle.remove()
    controls.text.set_state({"value": "w6"})
    assert panel.summary()["text"] == "w6"
    assert panel.error is None


def test_a_model_that_was_not_there_can_be_asked_for_again(panel, tokenizer, tmp_path):
    folder = str(tmp_path / "model")
    panel.set(model=folder)
    assert folder in panel.summary()["error"]
    build("gpt2").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    panel.set(model=folder)
    assert panel.summary()["error"] is None
    assert panel.dataset.identical(lens.logit_lens(lens.load(folder).run("w1 w2 w3 w4")))


# -- the model's lock -----------------------------------------------------------------------------


def test_a_cell_that_holds_the_model_can_set_a_trait_and_a_setting(panel, controls, tiny):
    def cell() -> None:
        with tiny.lock.hold("an experiment"):
            panel.set(text="w5 w6")
            controls.text.value = "w7"

    InThread(cell).result()
    assert panel.summary()["text"] == "w7"


def test_a_cell_that_holds_the_model_while_the_worker_waits_for_it_can_set(panel, controls, tiny):
    def cell() -> None:
        with tiny.lock.hold("an experiment"):
            controls.text.set_state({"value": "w7"})
            until(lambda: "waiting" in controls.chip.value)
            panel.set(text="w5 w6")

    InThread(cell).result()
    assert panel.summary()["text"] == "w5 w6"


def test_a_cell_that_holds_the_model_can_ask_for_a_summary(panel, controls, tiny):
    def cell() -> str:
        with tiny.lock.hold("an experiment"):
            controls.text.set_state({"value": "w7"})
            return panel.summary()["text"]

    assert InThread(cell).result() == "w7"


def test_a_panel_that_waits_says_who_holds_the_model(panel, controls, tiny, gate):
    with tiny.lock.hold("training <a probe>"):
        controls.text.set_state({"value": "w7"})
        until(lambda: "waiting: the model is training &lt;a probe&gt;" in controls.chip.value)
        assert gate.prompts == []
    assert panel.summary()["text"] == "w7"
    assert "waiting" not in controls.chip.value


def test_a_cell_in_another_thread_waits_for_the_model(panel, tiny, gate):
    with tiny.lock.hold("an experiment"):
        cell = InThread(lambda: panel.set(text="w7"))
        until(lambda: "an experiment" in Controls(panel).chip.value)
        assert cell.running
        assert gate.prompts == []
    cell.result()
    assert panel.summary()["text"] == "w7"


def test_after_a_mistake_made_while_holding_the_model_nothing_says_waiting(panel, controls, tiny):
    with tiny.lock.hold("an experiment"):
        panel.set(text="")
    assert "waiting" not in controls.chip.value


def test_what_is_cancelled_while_it_waits_for_the_model_never_runs(panel, controls, tiny, gate):
    with tiny.lock.hold("an experiment"):
        controls.text.set_state({"value": "w7"})
        until(lambda: "waiting" in controls.chip.value)
        controls.cancel.click()
    assert panel.summary()["text"] == "w1 w2 w3 w4"
    assert 1 not in gate.blocks_run


def test_two_panels_over_one_model_run_one_after_the_other(panel, tiny, gate):
    other = LogitLens(tiny, "w9")
    gate.prompts.clear()
    gate.blocks_run.clear()
    gate.shut()
    first = InThread(lambda: panel.set(text="w5"))
    gate.wait_until_reached()
    second = InThread(lambda: other.set(text="w6"))
    until(lambda: "waiting" in Controls(other).chip.value)
    assert gate.prompts == [tiny.encode("w5")]
    gate.open()
    first.result()
    second.result()
    assert gate.blocks_run == [0, 1, 2, 0, 1, 2]
    assert (panel.summary()["text"], other.summary()["text"]) == ("w5", "w6")


# -- what is left over ----------------------------------------------------------------------------


def test_a_request_overtaken_in_the_queue_leaves_nothing_behind(panel, tiny):
    with tiny.lock.hold("an experiment"):
        panel.post(text="w5 w6 w7 w8 w9")
        until(lambda: panel._waiting is None)
        panel.post(follow={"position": 4, "token_id": 9})
        panel.post(text="w7 w8")
    panel.wait()
    until(lambda: panel._live == [])
    panel.set(colour="entropy")
    assert panel.summary()["error"] is None
    assert panel.grid.colour == "entropy"
    assert panel.grid.trajectory == {}


def test_a_picture_that_was_overtaken_before_it_was_shown_is_not_shown(panel, monkeypatch):
    """The worker has computed and stands before the picture; a cell asks for another one."""
    shown, reached, leave = [], threading.Event(), threading.Event()
    prepare = panel._prepare

    def slow(job, result):
        view = prepare(job, result)
        if job.settings["text"] == "w5 w6":
            reached.set()
            assert leave.wait(PATIENCE)
        return view

    monkeypatch.setattr(panel, "_prepare", slow)
    panel.grid.observe(lambda change: shown.append(change["new"]["input"]), "spec")
    panel.post(text="w5 w6")
    assert reached.wait(PATIENCE)
    panel.set(text="w7")
    leave.set()
    until(lambda: panel._live == [])
    assert shown == [["w7"]]
    assert panel.summary()["text"] == "w7"


def test_a_closed_panel_ends_its_worker(tiny):
    panel = LogitLens(tiny, "w1 w2")
    panel.post(text="w3")
    panel.wait()
    worker = panel._worker
    panel.close()
    worker.join(PATIENCE)
    assert not worker.is_alive()


@pytest.mark.parametrize(
    "changes", [{"selected": 5}, {"selected": (1,)}, {"stride": "a"}, {"stride": 1.5}, {"text": 5}, {"follow": {}}]
)
def test_a_setting_of_the_wrong_kind_is_one_line_or_nothing(panel, changes):
    before = panel.dataset
    panel.set(**changes)
    assert panel.dataset is before
    assert changes == {"follow": {}} or panel.summary()["error"] is not None


def test_models_that_were_shown_stay_in_the_picker(panel, controls, tiny):
    other = lens.load(build("gpt2", seed=1), tiny.tokenizer)
    panel.set(model=other)
    assert {tiny, other} <= set(dict(controls.model.options).values())
