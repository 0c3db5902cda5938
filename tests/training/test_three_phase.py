"""Three-Phase models trained short: paired, resumed after a kill, saved so that they open, and their record readable."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import Cancelled, InputError
from lens.corpora import Corpus
from lens.models.three_phase import ThreePhaseForCausalLM
from lens.models.three_phase.transport import layers
from lens.probes.phase_balance import phase_balance
from lens.training import loop, read_record
from lens.training.phase_course import look_at_phases
from lens.training.phase_recipes import FAMILY, PhaseRecipe, TextRecipe, phase_recipe, recipe_names
from lens.training.subwords import END, SubwordLoss, SubwordText, subword_text, window_losses
from lens.training.three_phase import RECORD, phase_model, train_three_phase

ROOT = Path(__file__).parents[2]
WORDS = [
    "the",
    "a",
    "of",
    "rotary",
    "phase",
    "loss",
    "head",
    "turns",
    "slowly",
    "and",
    "stream",
    "horn",
    "three",
    "for",
    "it",
    "block",
]
SMALL = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
TEXT = TextRecipe(("made up",), vocabulary=300, length=16, windows=4)
STEPS = 30


def made_up(documents: int = 30) -> Corpus:
    draw = random.Random(3)
    return Corpus("made up", [" ".join(draw.choice(WORDS) for _ in range(80)) + f" {n}" for n in range(documents)])


def small(name: str, steps: int = STEPS) -> PhaseRecipe:
    """A recipe of the package for a model that trains in a second."""
    found = phase_recipe(name)
    return replace(found, model={**found.model, **SMALL}, text=TEXT).shortened(steps)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text() -> SubwordText:
    return subword_text([made_up()], TEXT.vocabulary)


# -- recipes --------------------------------------------------------------------------------------


def test_every_recipe_is_what_its_name_says():
    configs = {name: phase_recipe(name).config() for name in recipe_names()}
    assert [configs[f"three-phase-n{n}"].num_phases for n in (1, 2, 3, 4, 6, 8, 12)] == [1, 2, 3, 4, 6, 8, 12]
    assert set(FAMILY) < set(configs)
    assert {configs[name].num_hidden_layers for name in FAMILY} == {4}
    for name in ("three-phase-12-blocks", "three-phase-12-blocks-no-theta-decay"):
        assert configs[name].num_hidden_layers == 12
    for name in ("three-phase-rope-only", "three-phase-rope-only-scaled"):
        config = configs[name]
        assert (config.num_phases, config.phase_norm, config.phase_rotation, config.horn) == (1, False, "off", "none")
    assert configs["three-phase-rope-only-scaled"].embedding_multiplier == 96**0.5
    assert configs["three-phase-no-horn"].horn == "none"
    assert configs["three-phase-frozen-theta"].phase_rotation == "frozen"
    assert configs["three-phase-no-rotation"].phase_rotation == "off"
    assert phase_recipe("three-phase-no-theta-decay").training.undecayed == ("theta",)
    heads = {(config.num_attention_heads, config.num_key_value_heads, config.hidden_size) for config in configs.values()}
    assert heads == {(6, 3, 96)}
    assert len({phase_recipe(name).title for name in configs}) == len(configs)


def test_family_has_the_same_initial_weights_and_batches(text: SubwordText):
    models = {name: dict(phase_model(small(name), 5).named_parameters()) for name in FAMILY}
    shared = {key for key in models["three-phase-rope-only"] if "theta" not in key}
    for parameters in models.values():
        assert {key for key in parameters if "theta" not in key} == shared
        assert all(torch.equal(parameters[key], models["three-phase-n3"][key]) for key in shared)
    other = dict(phase_model(small("three-phase-n3"), 6).named_parameters())
    assert not torch.equal(other["lm_head.weight"], models["three-phase-n3"]["lm_head.weight"])
    drawn = [text.draw(4, 17, np.random.default_rng([seed, step])) for seed, step in ((5, 0), (5, 0), (5, 1), (6, 0))]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title = ", "no TOML"),
        ("[models]\nnum_phases = 3", "Try: model"),
        ("[model]\nnum_phase = 3", "Try: num_phases"),
        ("[model]\nvocab_size = 3", "vocab_size"),
        ("[training]\nsteps = 0", "warm-up"),
        ("[training]\nsteps = 'many'", "another kind"),
        ("[model]\nnum_phases = 'three'", "another kind"),
        ("[model]\nnum_phases = 5", "an even number of channels"),
        ("[training]\nseed = 3", "seed"),
        ("model = 3", "where a table belongs"),
        ("[text]\nlenght = 3", "Try: length"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, content: str, message: str):
    path = tmp_path / "own.toml"
    path.write_text(content)
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        phase_recipe(path)


def test_own_recipe_and_unknown_name(tmp_path: Path):
    path = tmp_path / "tied.toml"
    path.write_text('[model]\nphase_rotation = "tied"\n[text]\ncorpora = ["news"]\n')
    found = phase_recipe(path)
    assert (found.name, found.title, found.config().phase_rotation, found.text.corpora) == ("tied", "tied", "tied", ("news",))
    with pytest.raises(InputError, match="Try: three-phase-n3"):
        phase_recipe("three-phases-n3")


# -- text -----------------------------------------------------------------------------------------


def test_vocabulary_is_made_of_the_train_part_alone(text: SubwordText, cache: Path):
    corpus = made_up()
    held = [document.text for document in (*corpus.part("validation"), *corpus.part("test"))]
    changed = Corpus("made up", [*(d.text for d in corpus.part("train")), *(t for t in held[:1])])
    (path,) = (cache / "subwords").iterdir()
    written = {file.name: file.read_bytes() for file in path.iterdir()}
    (path / "tokenizer.json").unlink()
    (path / "train.safetensors").unlink()
    path.rmdir()
    again = subword_text([changed], TEXT.vocabulary)  # made anew, from the same train documents
    assert {file.name: file.read_bytes() for file in path.iterdir()} == written
    assert again.digest == text.digest
    assert len(text.tokenizer) == TEXT.vocabulary


def test_train_text_is_every_train_document_and_its_end(text: SubwordText):
    pieces = text.tokenizer.decode(text.train.astype(np.int64).tolist()).split(END)
    assert pieces == [*(document.text for document in made_up().part("train")), ""]
    assert text.tokenizer.convert_tokens_to_ids(END) == 0


def test_held_out_windows_are_the_heads_of_their_documents(text: SubwordText):
    (corpus,) = text.corpora
    held = text.held_out("test", corpus, 16, documents=2, windows=3)
    assert held.windows.shape == (6, 17)
    assert held.document == (0, 0, 0, 1, 1, 1)
    for row, document in ((0, corpus.part("test")[0]), (3, corpus.part("test")[1])):
        ids = text.tokenizer(document.text)["input_ids"]
        assert held.windows[row].tolist() == ids[:17]
        assert held.windows[row + 1].tolist() == ids[16:33]  # the last token of a window is foretold, then read
    assert held.by_document(torch.arange(6.0)[:, None].expand(6, 16)) == [1.0, 4.0]
    with pytest.raises(InputError, match="has 5001 tokens"):
        text.held_out("test", corpus, 5000, 2, 3)
    with pytest.raises(InputError, match="length of a window"):
        text.draw(1, 10**6, np.random.default_rng(0))


def test_vocabulary_that_the_text_cannot_fill_is_refused(cache: Path):
    with pytest.raises(InputError, match="make .* tokens"):
        subword_text([made_up(3)], 60_000)
    with pytest.raises(InputError, match="258 to 65536"):
        subword_text([made_up(3)], 100)
    assert list((cache / "subwords").iterdir()) == []
    with pytest.raises(InputError, match="a name for each"):
        subword_text([made_up(3), made_up(4)], 300)


def test_loss_is_that_of_the_library(text: SubwordText):
    model = phase_model(small("three-phase-n3"), 0)
    drawn = text.draw(4, 17, np.random.default_rng([3, 7]))
    expected = model(input_ids=drawn, labels=drawn).loss
    found = SubwordLoss(model, text, length=16, windows=4, seed=3)(7)["text"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert window_losses(model, drawn).mean().item() == pytest.approx(expected.item(), rel=1e-5)


# -- looks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["three-phase-n3", "three-phase-rope-only", "three-phase-frozen-theta"])
def test_look_gives_what_the_probe_of_phases_measures(text: SubwordText, name: str):
    (corpus,) = text.corpora
    windows = text.held_out("validation", corpus, 16, 2, 2).windows
    module = phase_model(small(name), 1)
    found = look_at_phases(module, windows, 3)
    model = lens.load(module, text.tokenizer)
    balance = phase_balance([model.run(row[:-1].tolist()) for row in windows], 3, partitions=1)
    np.testing.assert_allclose(found["phase_mean"], balance.phase_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.transpose(found["share"]), balance["share"], rtol=1e-4, atol=1e-7)
    assert np.shape(found["phase_norm"]) == (3, 3)
    assert ("theta" in found) == (name != "three-phase-rope-only")
    if "theta" in found:
        np.testing.assert_allclose(found["theta"], np.outer([np.pi / 4, np.pi / 2], np.ones(8)), rtol=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in module.modules())


# -- training -------------------------------------------------------------------------------------


def test_trained_model_opens_and_its_record_says_what_it_is(tmp_path: Path, text: SubwordText):
    seen = []
    done = train_three_phase(
        small("three-phase-n3"), seed=2, folder=tmp_path / "n3", corpora=text.corpora, watch=lambda *step: seen.append(step)
    )
    assert sorted(p.name for p in done.folder.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", RECORD,
    ]  # fmt: skip
    assert len({path.stat().st_mode for path in done.folder.iterdir()}) == 1  # whoever may read one may read all
    record = read_record(done.folder / RECORD)
    assert record == done.record
    assert [number for number, _ in seen] == list(range(1, STEPS + 1))
    assert tuple(step for _, step in seen) == record.steps
    losses = [step.loss for step in record.steps]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    assert [number for number, step in seen if step.observed] == list(range(1, STEPS + 1))  # every step of so short a training
    results = record.results
    assert results["initial"]["validation_loss"] > record.steps[-1].observed["validation_loss"]
    assert results["tokens_per_second"] == pytest.approx(record.tokens / record.seconds, rel=1e-2)
    assert record.recipe.seed == 2
    assert record.environment["device"] == "cpu"
    model = lens.load(done.folder, device="cpu")
    assert isinstance(model.module, ThreePhaseForCausalLM)
    assert model.run("the phase turns").logits is not None
    assert results["parameters"] == sum(p.numel() for p in model.module.parameters())
    # Weights are rounded to bfloat16, angles are not.
    angles = [turn.phase_rotation.theta.tolist() for turn in layers(model.module) if turn.phase_rotation is not None]
    np.testing.assert_allclose(record.steps[-1].observed["theta"], angles, rtol=1e-6)
    head = model.module.lm_head.weight
    assert torch.equal(head, head.bfloat16().float())
    assert results["weight_bytes"] == pytest.approx(2 * results["parameters"], rel=0.2)
    tested = results["test_loss"]["made up"]
    assert results["saved_test_loss"]["made up"] == pytest.approx(np.mean(tested), abs=0.01)
    assert np.mean(results["position_loss"]["made up"]) == pytest.approx(np.mean(tested), abs=0.05)
    held = text.held_out("test", text.corpora[0], 16, 64, 4)
    assert results["bytes_per_token"]["made up"] == pytest.approx(held.bytes_per_token, abs=1e-4)


def test_text_without_test_documents_is_refused_before_a_step(tmp_path: Path):
    train_and_validation = [d.text for d in made_up().documents if d.part != "test"]

    def never() -> None:
        raise AssertionError("a step was begun")

    with pytest.raises(InputError, match="No test document"):
        train_three_phase(
            small("three-phase-n3"), folder=tmp_path, corpora=[Corpus("made up", train_and_validation)], check=never
        )


def test_two_trainings_with_one_seed_are_the_same_bits(tmp_path: Path):
    runs = [train_three_phase(small("three-phase-n2"), folder=tmp_path / name, corpora=[made_up()]) for name in "ab"]
    first, second = ((run.folder / "model.safetensors").read_bytes() for run in runs)
    assert first == second
    assert [step.terms for step in runs[0].record.steps] == [step.terms for step in runs[1].record.steps]


def test_finished_training_is_read_and_another_one_refused(cache: Path):
    recipe, seen = small("three-phase-n3", 3), []
    done = train_three_phase(recipe, corpora=[made_up()])
    assert done.folder.parent == cache / "trained"

    def never() -> None:
        raise AssertionError("a step was begun")

    again = train_three_phase(recipe, corpora=[made_up()], check=never, watch=lambda number, _: seen.append(number))
    assert again == done
    assert seen == [1, 2, 3]
    with pytest.raises(InputError, match="holds another training"):
        train_three_phase(recipe, seed=1, corpora=[made_up()], folder=done.folder)


def test_angles_without_decay_and_frozen_ones(tmp_path: Path):
    """The three trainings differ in what happens to angles alone; frozen ones stay, to the last bit."""
    found = {}
    for name in ("three-phase-n3", "three-phase-no-theta-decay", "three-phase-frozen-theta"):
        run = train_three_phase(small(name, 4), corpora=[made_up()], folder=tmp_path / name)
        found[name] = [torch.tensor(step.observed["theta"]) for step in run.record.steps]
    start = phase_model(small("three-phase-frozen-theta"), 0)
    expected = torch.stack([turn.phase_rotation.theta for turn in layers(start) if turn.phase_rotation is not None])
    for step in found["three-phase-frozen-theta"]:
        torch.testing.assert_close(step, expected, rtol=1e-6, atol=0)
    # No warm-up in so short a training: the first update of Adam moves each angle by the rate, and decay by rate · 0.1 · angle.
    rate = phase_recipe("three-phase-n3").training.learning_rate
    gap = found["three-phase-no-theta-decay"][0] - found["three-phase-n3"][0]
    torch.testing.assert_close(gap, 0.1 * rate * expected, rtol=0.05, atol=0)


CHILD = """
import sys
from tests.training.test_three_phase import made_up, small
from lens.training import loop
from lens.training.three_phase import train_three_phase

loop._WRITE_EVERY = 0.0
report = lambda step: print(step.done, flush=True)
train_three_phase(small("three-phase-n3"), folder=sys.argv[1], corpora=[made_up()], progress=report)
"""


def test_killed_training_ends_with_the_same_bits(tmp_path: Path):
    expected = train_three_phase(small("three-phase-n3"), folder=tmp_path / "whole", corpora=[made_up()])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    command, first = [sys.executable, "-c", CHILD, str(tmp_path / "killed")], []
    for lines in (8, None):
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout is not None
        first.append(int(child.stdout.readline()))
        if lines is not None:
            for _ in range(lines):
                child.stdout.readline()
            child.kill()
        _, error = child.communicate()
        assert child.returncode == (0 if lines is None else -9), error
    assert first[0] == 1
    assert first[1] > 5
    found = read_record(tmp_path / "killed" / RECORD)
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (expected.folder / "model.safetensors").read_bytes()
    assert [(s.terms, s.observed) for s in found.steps] == [(s.terms, s.observed) for s in expected.record.steps]
    assert found.results["test_loss"] == expected.record.results["test_loss"]


def test_cancelled_training_goes_on_and_tells_its_whole_course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "_WRITE_EVERY", 1e9)
    recipe, seen = small("three-phase-n4", 6), []

    def check() -> None:
        if len(seen) == 3:
            raise Cancelled

    asked = {"folder": tmp_path / "run", "corpora": [made_up()], "watch": lambda number, step: seen.append((number, step.loss))}
    with pytest.raises(Cancelled):
        train_three_phase(recipe, check=check, **asked)
    before = list(seen)
    done = train_three_phase(recipe, **asked)
    assert seen[3:6] == before  # those of the state that it goes on from
    assert seen[3:] == [(number, step.loss) for number, step in enumerate(done.record.steps, 1)]
    lines = (done.folder / RECORD).read_text().splitlines()
    assert json.loads(lines[1])["observed"]["validation_loss"] > 0
