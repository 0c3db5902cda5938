"""Train Three-Phase models from nothing: a recipe in, a folder out that `lens.load` opens.

    lens train three-phase-n3          # one model
    lens train three-phase --seed 0 1  # the whole family, with two seeds

All models of one size and one seed begin with the same weights and see the same tokens in the same order, so that two
of them differ in nothing but what their recipes say. A training that was killed goes on where its last state was
written and ends with the bits that it would have had.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lens.base.cache import cache_folder, cache_lock
from lens.base.errors import InputError
from lens.base.files import atomic_file
from lens.base.progress import Progress
from lens.corpora import Corpus, corpus
from lens.models.load import load, quiet_transformers, require_device
from lens.models.three_phase import PhaseRotation, ThreePhaseForCausalLM
from lens.models.three_phase.modeling import Horn
from lens.training.drawing import DrawnFrom
from lens.training.loop import Watch, kept_steps, tell_steps, train
from lens.training.phase_course import look_at_phases
from lens.training.phase_recipes import PhaseRecipe, phase_recipe
from lens.training.record import Recipe, Record, read_record
from lens.training.subwords import HeldOut, SubwordLoss, SubwordText, subword_text, window_losses

RECORD = "training.jsonl"
LOOKS = 24  # at the phases and the held-out loss, while a model trains
LOOK_DOCUMENTS = 16  # of each corpus, one window each
TEST_DOCUMENTS, TEST_WINDOWS = 64, 4  # of each corpus; of each document
_FORMAT = 1
_SOURCE = ("format", "title", "model", "corpora", "corpus_hashes", "vocabulary", "tokenizer", "length", "windows", "precision")


@dataclass(frozen=True)
class TrainedModel:
    """A finished training.

    Attributes:
        folder: weights in bfloat16 (angles and learned horns in float32), configuration, tokenizer, and the record.
        record: of the run. Its `results` hold `initial`, the first look; `test_loss[corpus][document]` and
            `position_loss[corpus][position]`, nats per token of the test part; `saved_test_loss[corpus]`, the mean of
            the weights as they are saved; `bytes_per_token[corpus]`, `parameters`, `tokens_per_second`.
    """

    folder: Path
    record: Record

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    def mean_test_loss(self) -> dict[str, float]:
        """Mean over the test documents of each corpus, nats per token."""
        return {name: _mean(losses) for name, losses in self.record.results["test_loss"].items()}


def phase_model(recipe: PhaseRecipe, seed: int) -> ThreePhaseForCausalLM:
    """An untrained model; those of one size and seed have the same weights, whatever their variant."""
    config = recipe.config()
    with DrawnFrom(seed):
        return ThreePhaseForCausalLM(config).eval()  # no dropout: training and reading are the same


def train_three_phase(
    recipe: PhaseRecipe | str | Path,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    folder: Path | str | None = None,
    corpora: Sequence[Corpus] | None = None,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
    began: Callable[[Record], None] | None = None,
    watch: Watch | None = None,
) -> TrainedModel:
    """Train a model, or go on with its training, or read it where it is finished.

    Args:
        recipe: itself, its name, or its file.
        seed: of the weights and the windows; the same for all recipes that are compared.
        device: on a CUDA device it computes in bfloat16 (autocast) and is not exactly repeatable.
        folder: for state and result; by default a place in the cache.
        corpora: in the place of those that the recipe names.
        progress: callback in steps; by default a bar in a terminal.
        check: called before every step, and while another process trains the same; raising `Cancelled` stops, and the next
            call goes on.
        began: called once before the first step, with a record of no step whose `results` hold `initial`, the first look. Not
            called where the training is finished.
        watch: called with the number and the `StepRecord` of every step, from the first one on: its loss, and 24 times in a
            training `observed`, see `lens.training.phase_course.look_at_phases`.

    Memory: parameters, gradient and two moments, 16 bytes for a parameter, and the activations of one step.

    Raises:
        InputError: a recipe that is none, too little text, or another training in `folder`. FetchError: a corpus could not be
            fetched. DeviceError: no such device.
    """
    chosen, place = recipe if isinstance(recipe, PhaseRecipe) else phase_recipe(recipe), require_device(device)
    training = replace(chosen.training, seed=seed)
    text = subword_text([corpus(name) for name in chosen.text.corpora] if corpora is None else corpora, chosen.text.vocabulary)
    source = _source(chosen, text, place)
    key = hashlib.sha256(json.dumps([training.facts(), source]).encode()).hexdigest()[:16]
    target = cache_folder() / "trained" / f"{chosen.name}-seed{seed}-{key[:8]}" if folder is None else Path(folder)
    with cache_lock(f"trained-{hashlib.sha256(str(target.resolve()).encode()).hexdigest()[:16]}", check):
        if (kept := _finished(target, training.facts(), source)) is not None:
            tell_steps(watch, kept.steps)
            return TrainedModel(target, kept)
        module = phase_model(chosen, seed)
        nn.Module.to(module, place)
        held = _held_out(chosen, text)
        look = _Look(module, chosen, text)
        initial, tokens = look(0), chosen.text.windows * chosen.text.length
        if began is not None:
            began(Record(training, source, {}, (), tokens, {"initial": initial}))
        loss = SubwordLoss(module, text, length=chosen.text.length, windows=chosen.text.windows, seed=seed)
        record = train(
            training, module, loss, source=source, tokens_per_step=tokens, folder=target, progress=progress, check=check,
            observe=look, watch=watch,
        )  # fmt: skip
        results = {"initial": initial, **_save(module, text, target), **_tested(module, held), **_sizes(module, record)}
        losses = _tested(load(target, device=place).module, held)["test_loss"]
        results["saved_test_loss"] = {name: _mean(values) for name, values in losses.items()}
        finished = replace(record, results=results)
        finished.write(target / RECORD)
        for name in ("state.safetensors", "record.jsonl"):
            (target / name).unlink()
        return TrainedModel(target, finished)


def kept_training(recipe: PhaseRecipe, seed: int, device: str | torch.device = "cpu") -> Record | None:
    """What the cache holds of a training, whole or up to a state that it would go on from; None where there is nothing.

    Nothing is fetched or computed. The record of one that is not finished has no `results`. Should a corpus have changed since
    (another release of a package whose docstrings it is), a new training would begin all the same.

    Args:
        recipe, seed, device: as `train_three_phase` takes them.
    """
    wanted = replace(recipe.training, seed=seed).facts(), _told(recipe, torch.device(device))
    folders = (cache_folder() / "trained").glob(f"{recipe.name}-seed{seed}-*")
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        if (found := _kept(folder)) is not None and (found.recipe.facts(), _without_text(found.source)) == wanted:
            return found
    return None


def _kept(folder: Path) -> Record | None:
    if (folder / RECORD).exists():
        return read_record(folder / RECORD)
    if (state := kept_steps(folder)) is None:
        return None
    asked, environment, steps = state
    return Record(Recipe(**asked["recipe"]), asked["source"], environment, tuple(steps))


def _without_text(source: Mapping[str, Any]) -> dict[str, Any]:
    """What a training is made of, but for what only reading the corpora can tell."""
    return {name: value for name, value in source.items() if name not in ("corpus_hashes", "tokenizer")}


def _told(recipe: PhaseRecipe, device: torch.device) -> dict[str, Any]:
    """What a recipe says of the training's source."""
    return {
        "format": _FORMAT,
        "title": recipe.title,
        "model": {name: recipe.model[name] for name in sorted(recipe.model)},
        "corpora": list(recipe.text.corpora),
        "vocabulary": recipe.text.vocabulary,
        "length": recipe.text.length,
        "windows": recipe.text.windows,
        "precision": "bfloat16 autocast" if device.type == "cuda" else "float32",
    }


def _source(recipe: PhaseRecipe, text: SubwordText, device: torch.device) -> dict[str, Any]:
    read = {
        "corpora": [found.name for found in text.corpora],
        "corpus_hashes": [found.digest for found in text.corpora],
        "tokenizer": text.digest,
    }
    # In the order in which older records have them, for the folder's name is a hash over it.
    told = {**_told(recipe, device), **read}
    return {name: told[name] for name in _SOURCE}


def _finished(folder: Path, recipe: dict[str, Any], source: dict[str, Any]) -> Record | None:
    """The record of a training that is done; None where there is none. It is written last, so the model is whole."""
    if not (folder / RECORD).exists():
        return None
    found = read_record(folder / RECORD)
    if (found.recipe.facts(), dict(found.source)) != (recipe, source):
        raise InputError(f"{folder} holds another training of {found.recipe.name}", f"{recipe['name']}", "another folder")
    return found


class _Look:
    """Looks at the model some times while it trains, always at the same held-out windows."""

    def __init__(self, module: ThreePhaseForCausalLM, recipe: PhaseRecipe, text: SubwordText):
        held = [text.held_out("validation", found, recipe.text.length, LOOK_DOCUMENTS, 1) for found in text.corpora]
        self.windows = torch.cat([part.windows for part in held])
        self.module, self.steps = module, recipe.training.steps
        own = module.config.num_phases
        self.phases = own if own > 1 else 3  # a model without parts is cut into three, too: what its parts do by chance

    def __call__(self, step: int) -> dict[str, Any]:
        if step % max(1, self.steps // LOOKS) and step != self.steps:
            return {}
        return look_at_phases(self.module, self.windows, self.phases)


def _held_out(recipe: PhaseRecipe, text: SubwordText) -> dict[str, HeldOut]:
    """Test windows by corpus; drawn before a training, which would be in vain without any."""
    return {found.name: text.held_out("test", found, recipe.text.length, TEST_DOCUMENTS, TEST_WINDOWS) for found in text.corpora}


def _tested(module: nn.Module, held: Mapping[str, HeldOut]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"test_loss": {}, "position_loss": {}, "bytes_per_token": {}}
    for name, part in held.items():
        with torch.no_grad():
            losses = torch.cat([window_losses(module, windows).double().cpu() for windows in part.windows.split(32)])
        found["test_loss"][name] = [round(value, 5) for value in part.by_document(losses)]
        found["position_loss"][name] = [round(value, 5) for value in losses.mean(0).tolist()]
        found["bytes_per_token"][name] = round(part.bytes_per_token, 4)
    return found


def _sizes(module: nn.Module, record: Record) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return {"parameters": parameters, "tokens_per_second": round((record.tokens or 0) / record.seconds, 1)}


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 5)


def _save(module: ThreePhaseForCausalLM, text: SubwordText, folder: Path) -> dict[str, int]:
    """Weights in bfloat16, but angles and learned horns, which move less than its steps, in float32."""
    rounded = copy.deepcopy(module)
    nn.Module.to(rounded, "cpu", torch.bfloat16)
    for name, part in module.named_modules():
        if isinstance(part, (PhaseRotation, Horn)):
            rounded.get_submodule(name).float().load_state_dict(part.state_dict())
    with quiet_transformers(), tempfile.TemporaryDirectory() as beside:
        rounded.save_pretrained(beside)
        text.tokenizer.save_pretrained(beside)
        for path in sorted(Path(beside).iterdir()):
            with atomic_file(folder / path.name) as temporary:
                shutil.copyfile(path, temporary)
    return {"weight_bytes": (folder / "model.safetensors").stat().st_size}
