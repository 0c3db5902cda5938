"""SmolLM2's moments over a corpus: what they cost beside the bare model, how far they agree with a CPU's, and what they feed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens.base.progress import Step
from lens.collect import MomentParts, collect_moments, draw_windows, in_batches
from lens.corpora import Corpus, corpus, installed_docstrings
from lens.models.load import load
from lens.models.model import Model
from lens.models.run import residual_states
from lens.moments import Accumulator, Moments, outlier_limits, residual_pairs, token_norms
from lens.probes.compare_lenses import compare_lenses
from lens.probes.dataset import exact, texts
from lens.probes.early_exit import early_exit
from lens.probes.linearity import linearity
from lens.probes.shortcuts import Shortcuts, fit_shortcuts
from lens.runs.run import Budget, Measure, Measured, NamedRun, Setting

_REPEATS = 5
_BATCH = 2048  # tokens, as in a pass
# What the package needs in any case; the train part of their docstrings has a little more than two million tokens.
_PACKAGES = ["numpy", "scipy", "torch", "transformers", "sympy", "networkx", "pandas", "xarray", "huggingface_hub"]
_DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}  # of the forward pass; statistics are float32 and float64 in any case


def pieces(budget: Budget) -> Mapping[str, Measure]:
    """Cost and agreement first, which need little; then the whole corpus."""
    return {"rate": _rate, "agreement": _agreement, "linearity": _linearity, "shortcuts": _shortcuts, "early_exit": _early_exit}


SMOLLM2_MOMENTS = NamedRun(
    "smollm2-moments",
    "Moments of SmolLM2 over a corpus: cost, agreement with a CPU, linearity, shortcuts, early exit",
    {
        "cpu": {"model": "smollm2-135m", "corpus": "wikipedia", "tokens": 20_000, "few_tokens": 4_096, "read_tokens": 800},
        "cuda": {
            "model": "smollm2-135m",
            "corpus": "docstrings",
            "packages": _PACKAGES,
            "tokens": 2_000_000,
            "few_tokens": 65_536,
            "read_tokens": 20_000,
        },
    },
    pieces,
)


def _model(setting: Setting) -> Model:
    return load(setting.budget["model"], device=setting.device, dtype=_DTYPES[setting.device.type])


def _corpus(setting: Setting) -> Corpus:
    packages = setting.budget.get("packages")
    return corpus(str(setting.budget["corpus"])) if packages is None else installed_docstrings(packages)


def _moments(setting: Setting) -> tuple[MomentParts, int]:
    """Gathered once, resumed where it was stopped, and kept in the cache; and how many tokens were read for it just now."""
    model, tokens = _model(setting), int(setting.budget["tokens"])
    read, done = 0, {}

    def count(step: Step) -> None:  # of each batch once; what was read before a pass was stopped is not counted
        nonlocal read
        read += min(step.done - done.get(step.label, 0), _BATCH)
        done[step.label] = step.done

    found = collect_moments(model, _corpus(setting), tokens=tokens, window=_window(model), progress=count, check=setting.check)
    return found, read


def _window(model: Model) -> int:
    return min(256, model.context or 256)


def _few(setting: Setting, model: Model, tokens: int) -> list[Tensor]:
    return in_batches(draw_windows(model, _corpus(setting), "train", tokens, _window(model)), _BATCH)


def _empty(model: Model, batch: Tensor) -> Accumulator:
    """Sums shifted by the means of one batch, massive tokens dropped by its norms, as a pass does it."""
    states = residual_states(model.module, model.anatomy, batch).float()
    norms = token_norms(states).flatten(1)
    limits = outlier_limits(norms, "robust")
    ordinary = (norms <= limits[:, None]).all(0)
    shift = states.flatten(1, 2)[:, ordinary].mean(1)
    return Accumulator(shift, limits, residual_pairs(model.n_layers, "both"), drop_first=True, source={})


# -- pieces ----------------------------------------------------------------------------------------


def _rate(setting: Setting) -> Measured:
    """The model alone, and with its states gathered, over the same batches in turn."""
    model, tokens = _model(setting), int(setting.budget["few_tokens"])
    batches = _few(setting, model, tokens)
    into = _empty(model, batches[0])

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                model.module.base_model(input_ids=batch.to(model.device), use_cache=False)

    def gathered() -> None:
        for batch in batches:
            into.add(residual_states(model.module, model.anatomy, batch, setting.check))
        into.flush()

    read = sum(batch.numel() for batch in batches)
    ways = {"bare forward": bare, "forward with moments": gathered}
    seconds, processor = _least(ways, setting)
    found = {
        "seconds": exact(("way",), seconds, "least wall time of several turns", "s"),
        "processor_seconds": exact(("way",), processor, "least processor time of several turns, all threads", "s"),
        "token_rate": exact(("way",), read / seconds, "tokens a second"),
        "ratio": exact((), seconds[1] / seconds[0], "time with moments over that of the bare forward"),
        "processor_ratio": exact((), processor[1] / processor[0], "the same of the processor's time"),
    }
    way = {"way": texts(("way",), list(ways), "what was timed")}
    return Measured(xr.Dataset(found, way, {"dtype": model.dtype_name, "batch": _BATCH}), 2 * (_REPEATS + 1) * read)


def _least(ways: Mapping[str, Callable[[], None]], setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Least wall and processor seconds of each, in turn; the first turn only warms up."""
    turns = [[_timed(way, setting) for way in ways.values()] for _ in range(_REPEATS + 1)]
    wall, processor = np.array(turns[1:]).min(0).T
    return wall, processor


def _timed(way: Callable[[], None], setting: Setting) -> tuple[float, float]:
    setting.check()
    _wait(setting.device)
    began, processor = time.perf_counter(), time.process_time()
    way()
    _wait(setting.device)
    return time.perf_counter() - began, time.process_time() - processor


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _agreement(setting: Setting) -> Measured:
    """Moments of one batch from this device and dtype, against those of a CPU in float32; on a CPU, against float64."""
    model = _model(setting)
    other = load(setting.budget["model"], device="cpu", dtype=torch.float64 if setting.device.type == "cpu" else torch.float32)
    batch = _few(setting, model, _BATCH)[0]
    ours, theirs = (_gathered(one, batch) for one in (model, other))
    pairs = [(i, i) for i in sorted(ours.within)] + list(ours.pairs)
    gaps = np.array([_gap(_second(ours, pair), _second(theirs, pair)) for pair in pairs])
    means = np.array([_gap(one, another) for one, another in zip(ours.mean.cpu(), theirs.mean.cpu(), strict=True)])
    found = {
        "gap": exact(("pair",), gaps, "difference of second moments over their size (Frobenius norm)"),
        "mean_gap": exact(("layer",), means, "difference of means over their size"),
        "tokens_kept": exact(("device",), np.array([ours.count, theirs.count]), "tokens that the mask keeps"),
    }
    coordinates = {
        "from_layer": (("pair",), np.array([i for i, _ in pairs], np.int32)),
        "to_layer": (("pair",), np.array([j for _, j in pairs], np.int32)),
        "device": texts(("device",), [f"{one.device.type}, {one.dtype_name}" for one in (model, other)], "device and dtype"),
    }
    return Measured(xr.Dataset(found, coordinates), batch.numel())


def _gathered(model: Model, batch: Tensor) -> Moments:
    into = _empty(model, batch)
    into.add(residual_states(model.module, model.anatomy, batch).float())
    into.flush()
    return into.moments


def _second(moments: Moments, pair: tuple[int, int]) -> Tensor:
    return (moments.within[pair[0]] if pair[0] == pair[1] else moments.across[pair]).cpu() / moments.count


def _gap(one: Tensor, another: Tensor) -> float:
    return float((one - another).norm() / another.norm())


def _linearity(setting: Setting) -> Measured:
    moments, read = _moments(setting)
    return Measured(linearity(moments.train, moments.test), read or None)


def _fitted(setting: Setting) -> tuple[Shortcuts, MomentParts]:
    moments, _ = _moments(setting)
    return fit_shortcuts(moments.train, validation=moments.validation), moments


def _shortcuts(setting: Setting) -> Measured:
    shortcuts, moments = _fitted(setting)
    return Measured(shortcuts.score(moments.test))


def _early_exit(setting: Setting) -> Measured:
    model, tokens = _model(setting), int(setting.budget["read_tokens"])
    shortcuts, _ = _fitted(setting)
    lenses: dict[str, Shortcuts | None] = {"plain": None, "shortcut": shortcuts}
    layers: Sequence[int] = range(model.n_layers + 1)
    found, window = _corpus(setting), _window(model)
    readings = compare_lenses(model, found, lenses, tokens=tokens, layers=layers, window=window, check=setting.check)
    return Measured(early_exit(readings), tokens)
