"""Trainings in threads of their own: stopped and gone on with to the same bits, shared, and harmless to other threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lens.base.errors import InputError
from lens.corpora import Corpus
from lens.training import background
from lens.training.background import BackgroundTraining, background_training
from lens.training.phase_recipes import PhaseRecipe
from lens.training.three_phase import kept_training, phase_model, train_three_phase
from tests.training.test_three_phase import made_up, small

STEPS, PATIENCE = 12, 60


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(background, "_TELL_EVERY", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def recipe() -> PhaseRecipe:
    return small("three-phase-n3", STEPS)


@pytest.fixture
def training(recipe: PhaseRecipe) -> Iterator[BackgroundTraining]:
    found = background_training(recipe, corpora=[made_up()])
    yield found
    found.stop()
    found.wait(PATIENCE)


def stop_at(training: BackgroundTraining, step: int) -> None:
    """Run until a step is done, and no further."""

    def told() -> None:
        if training.done == step:
            training.stop()

    training.listen(told)
    training.start()
    training.wait(PATIENCE)
    training.leave(told)


def test_stopped_and_resumed_training_ends_with_the_bits_of_one_that_never_stopped(training, recipe, cache, tmp_path):
    expected = train_three_phase(recipe, corpora=[made_up()], folder=tmp_path / "whole")
    assert (training.state, training.done, training.pace) == ("new", 0, None)
    stop_at(training, 5)
    assert (training.state, training.done) == ("stopped", 5)
    assert [step.terms for step in training.record.steps] == [step.terms for step in expected.record.steps[:5]]
    kept = kept_training(recipe, 0)
    assert kept.steps == training.record.steps

    background._KNOWN.clear()  # as a new kernel finds it
    again = background_training(recipe, corpora=[made_up()])
    assert (again.state, again.done) == ("stopped", 5)
    again.start()
    again.wait(PATIENCE)
    assert (again.state, again.failure) == ("finished", None)
    assert [(s.terms, s.observed) for s in again.record.steps] == [(s.terms, s.observed) for s in expected.record.steps]
    assert again.record.results["test_loss"] == expected.record.results["test_loss"]
    (folder,) = (cache / "trained").iterdir()
    assert (folder / "model.safetensors").read_bytes() == (expected.folder / "model.safetensors").read_bytes()

    background._KNOWN.clear()
    assert background_training(recipe, corpora=[made_up()]).state == "finished"
    again.start()  # there is nothing left to do
    assert not again.running


def test_equal_settings_are_one_training_and_others_another(training, recipe):
    assert background_training(recipe, corpora=[made_up()]) is training
    assert background_training(recipe, seed=1, corpora=[made_up()]) is not training
    assert background_training(small("three-phase-n3", STEPS + 1), corpora=[made_up()]) is not training
    assert background_training(recipe, corpora=[made_up(31)]) is not training
    assert kept_training(recipe, 1) is None


def test_training_stops_when_its_last_listener_leaves(training):
    seen = threading.Event()
    first, second = seen.set, lambda: None
    training.listen(first)
    training.listen(second)
    training.start()
    assert seen.wait(PATIENCE)
    training.leave(first)
    assert training.wanted
    training.leave(second)
    training.wait(PATIENCE)
    assert not training.running
    assert not training.wanted


def test_another_process_that_trains_the_same_is_waited_for_and_can_be_given_up(training, recipe, tmp_path):
    """The lock is held by another thread with a lock of its own, as it is by another process."""
    inside, free = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert free.wait(PATIENCE)

    other = threading.Thread(target=lambda: train_three_phase(recipe, corpora=[made_up()], began=lambda _: hold()), daemon=True)
    other.start()
    assert inside.wait(PATIENCE)
    waiting = threading.Event()
    training.listen(lambda: "another process" in training.doing and waiting.set())
    training.start()
    assert waiting.wait(PATIENCE)
    training.stop()
    training.wait(PATIENCE)
    assert (training.state, training.failure) == ("new", None)
    free.set()
    other.join(PATIENCE)
    training.start()  # which finds it done
    training.wait(PATIENCE)
    assert (training.state, training.done) == ("finished", STEPS)


def test_what_goes_wrong_is_kept(recipe):
    untested = Corpus("made up", [d.text for d in made_up().documents if d.part != "test"])
    training = background_training(recipe, corpora=[untested])
    training.start()
    training.wait(PATIENCE)
    assert training.state == "failed"
    assert isinstance(training.failure, InputError)
    assert "No test document" in str(training.failure)


def test_weights_are_drawn_apart_from_every_other_thread(recipe):
    torch.manual_seed(3)
    expected = torch.rand(4), torch.rand(4)
    torch.manual_seed(0)
    wanted = dict(small_weights(recipe))  # torch's own generator and seed give the same
    torch.manual_seed(3)
    first = torch.rand(4)
    model = phase_model(recipe, 0)
    assert torch.equal(first, expected[0])
    assert torch.equal(torch.rand(4), expected[1])
    found = dict(model.named_parameters())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def small_weights(recipe: PhaseRecipe) -> Iterator[tuple[str, torch.nn.Parameter]]:
    from lens.models.three_phase import ThreePhaseForCausalLM

    return ThreePhaseForCausalLM(recipe.config()).named_parameters()
