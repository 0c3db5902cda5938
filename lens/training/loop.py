"""The one training loop: a recipe, a module and a loss in, a record out; resumed after a kill as if nothing had been.

The state is one file, written beside its former version and renamed, so that a kill at any moment leaves
one of the two whole. A step depends on the parameters, the optimiser's state and its own number alone:
a training that goes on from a written state ends, on one kind of processor with one number of threads, with
the same bits as one that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lens.base.errors import Cancelled, InputError
from lens.base.files import atomic_file
from lens.base.progress import Progress, Step, terminal_progress
from lens.base.provenance import library_versions
from lens.training.record import Recipe, Record, StepRecord

Loss = Callable[[int], Mapping[str, Tensor]]
Observe = Callable[[int], Mapping[str, Any]]
Watch = Callable[[int, StepRecord], None]
_WRITE_EVERY = 30.0  # seconds between two written states


def train(
    recipe: Recipe,
    module: nn.Module,
    loss: Loss,
    *,
    source: Mapping[str, Any] | None = None,
    tokens_per_step: int | None = None,
    folder: Path | str | None = None,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
    observe: Observe | None = None,
    watch: Watch | None = None,
) -> Record:
    """Train a module in place.

    Args:
        recipe: optimiser, learning rates, number of steps.
        module: its parameters that require gradients are trained, and nothing else is touched.
        loss: gives the terms of step 0, 1, …, each a scalar; their sum is minimised. It must depend on
            the parameters and the step's number alone.
        source: what the loss is made of (corpus, model, …), plain values: for the record, and to
            tell another training's state.
        tokens_per_step: for the record.
        folder: where the state is kept as `state.safetensors`, at most every half minute, on a cancel and at
            the end, and the record as `record.jsonl`. A training whose state lies there goes on from it; one
            that is finished is read, and no step is done.
        progress: callback in steps; by default a bar in a terminal.
        check: called before every step; raising `Cancelled` from it stops the training.
        observe: called after each update with its number, 1, 2, …; the plain values that it gives become
            `StepRecord.observed`. It must change nothing and depend on the parameters and the number alone.
        watch: called after each update with its number and its record, and first with those of a state
            that the training goes on from: for a curve that grows.

    Memory: besides the loss's own, the parameters once more for the gradient, and once (`sgd`) or twice for the
    optimiser's state.

    Raises:
        InputError: a loss that is not finite, or the state of another training in `folder`.
    """
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    optimiser = _optimiser(recipe, parameters)
    asked = {"recipe": recipe.facts(), "source": dict(source or {}), "initial": digest_of(parameters)}
    state = None if folder is None else Path(folder) / "state.safetensors"
    steps, environment = ([], {}) if state is None else _resume(state, asked, parameters, optimiser)
    if len(steps) < recipe.steps:
        environment = _environment(parameters)
    written, first = time.monotonic(), len(steps)
    tell_steps(watch, steps)

    def write() -> None:
        if state is not None and len(steps) > first:
            facts = {"asked": asked, "environment": environment, "steps": [step.facts() for step in steps]}
            _write_state(state, facts, parameters, optimiser)

    with terminal_progress() as bar:
        report = progress or bar
        try:
            while len(steps) < recipe.steps:
                if check is not None:
                    check()
                steps.append(_update(recipe, parameters, optimiser, loss, len(steps)))
                if observe is not None:
                    steps[-1] = replace(steps[-1], observed=dict(observe(len(steps))))
                tell_steps(watch, steps[-1:], len(steps))
                if time.monotonic() - written > _WRITE_EVERY:
                    write()
                    written = time.monotonic()
                report(Step(len(steps), recipe.steps, "steps", recipe.name))
        except Cancelled:
            write()
            raise
    write()
    record = Record(recipe, asked["source"], environment, tuple(steps), tokens_per_step)
    if folder is not None:
        record.write(Path(folder) / "record.jsonl")
    return record


def tell_steps(watch: Watch | None, steps: Sequence[StepRecord], first: int = 1) -> None:
    """Tell whoever watches, if somebody does, of steps; `first` is the number of the first of them."""
    for number, step in enumerate(steps, first):
        if watch is not None:
            watch(number, step)


def _optimiser(recipe: Recipe, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    free = {name for name in parameters if name.endswith(tuple(recipe.undecayed))}
    if recipe.undecayed and not free:
        found = f"No parameter's name ends in {' or '.join(recipe.undecayed)}"
        raise InputError(found, "one that weight decay leaves alone", "undecayed=()")
    groups: list[dict[str, Any]] = [{"params": [p for name, p in parameters.items() if name not in free]}]
    if free:
        groups.append({"params": [p for name, p in parameters.items() if name in free], "weight_decay": 0.0})
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=rate, weight_decay=decay, momentum=recipe.momentum, nesterov=True)
    kind = torch.optim.Adam if recipe.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, lr=rate, weight_decay=decay, betas=(recipe.momentum, recipe.square_momentum))


def _update(
    recipe: Recipe, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, loss: Loss, step: int
) -> StepRecord:
    start, trained = time.perf_counter(), list(parameters.values())
    for group in optimiser.param_groups:
        group["lr"] = recipe.rate(step)
    with torch.enable_grad():
        terms = loss(step)
        # Of the trained parameters only: a frozen model that the loss reads through is left without any.
        gradients = torch.autograd.grad(torch.stack(list(terms.values())).sum(), trained)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient.contiguous()  # clipping writes into it, and a gradient of a sum is one number repeated
    norm = nn.utils.clip_grad_norm_(trained, recipe.clip or float("inf"))
    values = {name: term.item() for name, term in terms.items()}
    if not torch.isfinite(norm) or not torch.isfinite(torch.tensor(list(values.values()))).all():
        found = f"Step {step + 1} of {recipe.name} has the loss {values} and a gradient of norm {norm.item():.3g}"
        raise InputError(found, "finite numbers", "a smaller learning rate, or clip=1.0")
    optimiser.step()
    optimiser.zero_grad()
    return StepRecord(values, recipe.rate(step), norm.item(), time.perf_counter() - start)


def _environment(parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    device = next(iter(parameters.values())).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads(), **library_versions()}


def _write_state(
    path: Path, facts: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> None:
    from safetensors.torch import save_file

    tensors = {f"parameter.{name}": parameter for name, parameter in parameters.items()}
    for index, entries in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in entries.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"facts": text, "check": digest_of(tensors, text)})


def _resume(
    path: Path, asked: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> tuple[list[StepRecord], dict[str, Any]]:
    """Put a written state into parameters and optimiser; the steps that it has done, and where. None where it is not whole."""
    found = _read_state(path)
    if found is None:
        return [], {}
    facts, tensors = found
    if facts["asked"] != json.loads(json.dumps(asked)):
        needed = f"of {asked['recipe']['name']} on {asked['source']} from the same start"
        raise InputError(f"{path} holds the training {facts['asked']}", needed, "another folder, or deleting that file")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, place = name.partition(".")
        if kind == "optimiser":
            index, _, entry = place.partition(".")
            entries.setdefault(int(index), {})[entry] = value
    optimiser.load_state_dict({"state": entries, "param_groups": optimiser.state_dict()["param_groups"]})
    return [StepRecord(**step) for step in facts["steps"]], facts["environment"]


def kept_steps(folder: Path | str) -> tuple[dict[str, Any], dict[str, Any], list[StepRecord]] | None:
    """What the state in a folder says it is of (`recipe`, `source`), where it was trained, and its steps; None without one.

    The tensors are not read: whether they are whole is found out by whoever goes on from them.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(Path(folder) / "state.safetensors"), "pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
        return facts["asked"], facts["environment"], [StepRecord(**step) for step in facts["steps"]]
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Facts and tensors of a state; None where there is none, or one that was damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            # Copies: tensors that still lay in the file would change when it is written anew.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
        if metadata["check"] != digest_of(tensors, metadata["facts"]):
            return None
        return json.loads(metadata["facts"]), tensors
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def digest_of(tensors: Mapping[str, Tensor], facts: str = "") -> str:
    """Hexadecimal SHA-256 over a text and names, shapes, dtypes and bytes of tensors."""
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
