"""The training panel: trains in the background, stops, goes on to the same bits, and leaves the notebook to its reader."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import InputError
from lens.corpora import Corpus
from lens.panels.phase_training import PhaseTraining
from lens.probes.phase_family import phase_family
from lens.training import background, read_record
from lens.training.phase_choice import PhaseChoice
from lens.training.phase_recipes import TextRecipe
from lens.training.three_phase import TrainedModel, train_three_phase
from tests.models.families import build
from tests.training.test_three_phase import made_up

TEXT = TextRecipe(("made up",), vocabulary=300, length=16, windows=2)
STEPS, PATIENCE = 7, 60


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, TrainedModel]:
    """What the library alone makes of the settings, by number of phases."""
    place = tmp_path_factory.mktemp("expected")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_CACHE", str(place / "cache"))
        recipes = {phases: PhaseChoice(phases, steps=STEPS).recipe(TEXT) for phases in (3, 1)}
        return {n: train_three_phase(one, corpora=[made_up()], folder=place / str(n)) for n, one in recipes.items()}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(background, "_TELL_EVERY", 0.0)
    return tmp_path / "cache"


def opened(**settings) -> PhaseTraining:
    return PhaseTraining(**{"steps": STEPS, "corpora": [made_up()], "text": TEXT, **settings})


@pytest.fixture
def panel(cache: Path) -> Iterator[PhaseTraining]:
    found = opened()
    yield found
    found.close()


class Gate:
    """Holds a training between two of its steps, until it is opened."""

    def __init__(self, panel: PhaseTraining, step: int):
        self.training = panel._training(panel._settings)[1]
        self.step, self.reached, self._open = step, threading.Event(), threading.Event()
        self.training.listen(self._told)

    def _told(self) -> None:
        if self.training.done == self.step and not self._open.is_set():
            self.reached.set()
            assert self._open.wait(PATIENCE)

    def wait(self) -> None:
        assert self.reached.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()
        self.training.leave(self._told)


@pytest.fixture
def gate(panel: PhaseTraining) -> Iterator[Gate]:
    found = Gate(panel, 4)
    yield found
    found.open()


def chip(panel: PhaseTraining) -> str:
    return panel._chip.value


def test_first_sight_is_the_shipped_record_in_words(panel: PhaseTraining):
    summary = panel.summary()
    family = phase_family().sel(seed=0)
    last = float(family["validation_loss"].sel(recipe="three-phase-n3").isel(looked_at=-1))
    assert (summary["shown"], summary["shipped"], summary["state"], summary["error"]) == ("3 phases", True, "new", None)
    assert summary["validation_loss"] == round(last, 3)
    assert summary["says"].startswith(f"In the shipped record 3 phases costs {last:.2f} nats a token")
    assert "3 phases with 7 updates is not trained yet" in summary["says"]
    gap = float(family["document_loss"].sel(recipe="three-phase-rope-only-scaled").mean()
                - family["document_loss"].sel(recipe="three-phase-n3").mean())  # fmt: skip
    assert summary["beside"]["RoPE only × √d"]["test_difference"][0] == pytest.approx(gap, abs=1e-4)
    assert panel._start.description == "Start"
    assert panel._stop.disabled
    assert "data:" not in panel.summary()["says"]


def test_training_in_the_panel_is_the_librarys_and_grows_step_by_step(panel: PhaseTraining, gate: Gate, expected):
    panel.start()
    gate.wait()
    panel.start()  # changes nothing
    summary = panel.summary()
    assert (summary["state"], summary["done"], summary["shipped"]) == ("training", 4, False)
    first = expected[3].record
    np.testing.assert_array_equal(
        panel.course["validation_loss"][1:], [step.observed["validation_loss"] for step in first.steps[:4]]
    )
    assert panel.chart.spec["plots"][0]["x"]["range"] == [0, STEPS]
    assert "4 of 7 updates" in chip(panel)
    assert (panel._start.disabled, panel._stop.disabled) == (True, False)
    gate.open()
    panel.finish()
    summary = panel.summary()
    assert (summary["state"], summary["done"], summary["updates"]) == ("finished", STEPS, STEPS)
    assert panel._stop.disabled
    assert panel._start.description == "Trained"
    panel.start()  # has nothing to do, and keeps nobody waiting
    assert panel.summary()["state"] == "finished"
    assert panel._stop.disabled
    np.testing.assert_array_equal(panel.course["train_loss"], [step.loss for step in first.steps])
    assert panel.course["test_loss"].to_numpy().tolist() == first.results["test_loss"]["made up"]


def test_stop_and_resume_end_with_the_same_bits(panel: PhaseTraining, gate: Gate, expected, cache: Path):
    panel.start()
    gate.wait()
    panel._halt()
    gate.open()
    panel.stop()
    assert (panel.summary()["state"], panel.summary()["done"]) == ("stopped", 4)
    assert panel._start.description == "Resume"
    panel.close()
    background._KNOWN.clear()  # a new kernel knows nothing but what is on disk

    again = opened()
    summary = again.summary()
    assert (summary["state"], summary["done"], summary["shown"], summary["shipped"]) == ("stopped", 4, "3 phases", False)
    assert "stopped after 4 of 7 updates" in chip(again)
    again._start.click()
    again.finish()
    assert again.summary()["state"] == "finished"
    (folder,) = (cache / "trained").iterdir()
    assert (folder / "model.safetensors").read_bytes() == (expected[3].folder / "model.safetensors").read_bytes()
    record = read_record(folder / "training.jsonl")
    assert [(s.terms, s.observed) for s in record.steps] == [(s.terms, s.observed) for s in expected[3].record.steps]
    again.close()


def test_cells_run_while_it_trains_and_neither_changes_the_other(panel: PhaseTraining, expected, tokenizer):
    """In the main thread, as cells do: models, random numbers and the panel itself; the training ends as it would alone."""
    model = lens.load(build("llama"), tokenizer)
    before = model.run("w1 w2 w3").logits
    torch.manual_seed(7)
    numbers = torch.rand(100, 50)
    panel.start()
    seen, cells = set(), 0
    while (summary := panel.summary())["state"] in background.RUNNING:
        torch.manual_seed(7)
        assert torch.equal(torch.rand(100, 50), numbers)
        assert torch.equal(model.run("w1 w2 w3").logits, before)
        panel.set(picture=("lengths", "means", "shares")[cells % 3])
        seen.add(summary["done"])
        cells += 1
    assert cells > 3
    assert len(seen) > 1  # it went on between cells
    panel.finish()
    assert [step.terms for step in panel._shown().record.steps] == [step.terms for step in expected[3].record.steps]


def test_another_run_stands_beside_it_paired(panel: PhaseTraining, expected):
    panel.start()
    panel.set(num_phases=1)
    panel.start()  # waits for its turn, if the first one still runs
    panel.finish()
    summary = panel.summary()
    assert (summary["num_phases"], summary["shown"], summary["state"]) == (1, "1 phase", "finished")
    losses = {n: np.array(one.record.results["test_loss"]["made up"]) for n, one in expected.items()}
    gap = (losses[3] - losses[1]).mean()
    assert summary["beside"]["3 phases"]["test_difference"][0] == pytest.approx(gap, abs=1e-4)
    assert "3 phases" in summary["says"]
    assert [one["name"] for one in panel.chart.spec["plots"][0]["series"]] == ["1 phase, held out", "1 phase, train",
                                                                              "3 phases, held out"]  # fmt: skip
    panel.set(picture="difference")
    (curve,) = panel.chart.spec["plots"][1]["series"]
    held = {n: one.record.steps[-1].observed["validation_loss"] for n, one in expected.items()}
    assert curve["values"][-1] == pytest.approx(held[3] - held[1], rel=1e-3)
    panel.set(num_phases=3)
    assert panel.summary()["shown"] == "3 phases"
    panel.set(seed=1)  # what was trained with another seed is no pair
    assert panel.summary()["shown"] == "3 phases"
    assert panel.summary()["state"] == "new"


def test_one_waits_for_its_turn_and_stop_stops_both(panel: PhaseTraining, gate: Gate):
    panel.start()
    gate.wait()
    panel.set(num_phases=2)
    panel.start()
    assert panel.summary()["waiting"] == ["2 phases"]
    assert panel._start.description == "Waiting"
    assert "then 2 phases" in chip(panel)
    panel._stop.click()
    gate.open()
    panel.stop()
    assert panel.summary()["waiting"] == []
    assert panel.summary()["state"] == "new"
    panel.set(num_phases=3)
    assert panel.summary()["state"] == "stopped"


def test_two_panels_share_a_training_and_the_last_one_that_closes_stops_it(panel: PhaseTraining, gate: Gate):
    other = opened()
    panel.start()
    gate.wait()
    other.start()
    assert other.summary()["done"] == 4
    assert other._current is panel._current
    panel.close()
    gate.open()  # leaves, too
    assert gate.training.wanted
    other.close()
    gate.training.wait(PATIENCE)
    assert not gate.training.running
    assert not any(thread.name.startswith("training") for thread in threading.enumerate())


def test_mistakes_are_one_line_while_the_training_goes_on(panel: PhaseTraining, gate: Gate):
    panel.start()
    gate.wait()
    for wrong in (
        {"num_phases": 5},
        {"rope_base": 0.5},
        {"rotation": "on"},
        {"seed": -1},
        {"steps": 0},
        {"device": "tpu"},
        {"picture": "spirals"},
    ):
        before = {name: panel._settings.get(name) for name in wrong}
        panel.set(**wrong)
        error = panel.summary()["error"]
        assert "Needed:" in error
        assert "\n" not in error
        panel.start()  # begins nothing
        if "picture" not in wrong:
            panel.set(**before)
    panel.set(picture="lengths")
    assert panel.summary()["error"] is None
    assert len(panel._trainings) == 1
    gate.open()
    panel.finish()
    assert panel.summary()["state"] == "finished"


def test_training_that_fails_says_why(cache: Path):
    untested = Corpus("made up", [d.text for d in made_up().documents if d.part != "test"])
    panel = opened(corpora=[untested])
    panel.start()
    panel.finish()
    assert "No test document" in panel.summary()["error"]
    assert panel.summary()["state"] == "failed"
    assert not panel._start.disabled
    panel.close()


def test_picture_that_a_training_lacks_gives_way_but_is_refused_to_who_asks_for_it(panel: PhaseTraining):
    assert panel.summary()["picture"] == "angles"
    panel.set(num_phases=1, rotation="off", horn=False, steps=800)  # in the shipped record
    summary = panel.summary()
    assert (summary["shown"], summary["picture"]) == ("3 phases", "angles")  # this text is not that of the record
    panel.set(picture="spirals")
    assert "spirals" in panel.summary()["error"]


def test_record_can_be_written(panel: PhaseTraining, tmp_path: Path, expected):
    with pytest.raises(InputError, match="shipped record"):
        panel.export(tmp_path / "r.jsonl")
    panel.export(tmp_path / "shipped.nc")
    panel.start()
    panel.finish()
    assert read_record(panel.export(tmp_path / "r.jsonl")).steps[-1].terms == expected[3].record.steps[-1].terms
    rows = panel.export(tmp_path / "r.csv").read_text().splitlines()
    assert rows[0] == "looked_at,validation_loss"
    assert len(rows) == STEPS + 2
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])["recipe"]["steps"] == STEPS
