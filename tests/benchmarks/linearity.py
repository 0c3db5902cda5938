"""The linearity score of the paper's own package, llm-microscope 0.0.7, and ours on identical activations."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import lens
from lens.moments import Accumulator, Moments, Pair, keep, residual_pairs
from tests.benchmarks.measure import Row, SkippedError, minima
from tests.benchmarks.states import Pilot, batches, pilot, states_of

VERSION = "0.0.7"
VARIABLE = "LLM_MICROSCOPE"
TOKENS = 8192
NOISE = ((1000, 100), (110, 100))  # tokens and width
DRAWS = 10
DIFFERENCE = 1e-3


class Beside(Row):
    """Two scores, of which no ratio would mean anything."""

    @property
    def ratio(self) -> None:
        return None


def rows(repeats: int) -> list[Row]:
    """Both on noise, both on the states of real text, and how long each takes."""
    theirs = _package()
    model = lens.load("smollm2-135m", device="cpu")
    train = list(states_of(model, batches(model, "train", TOKENS)))
    test = list(states_of(model, batches(model, "test", TOKENS // 4)))
    return [*_noise(theirs), *_real(theirs, train, test, min(repeats, 2))]


def _package() -> Callable[[Tensor, Tensor], float]:
    """Its `procrustes_similarity`, from the one file that holds it: the package itself cannot be imported."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return _read(Path(chosen) / "functions.py")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder]
        done = subprocess.run([*command, f"llm-microscope=={VERSION}"], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip found nothing"])[-1]
            raise SkippedError(f"llm-microscope {VERSION}: {reason}. {VARIABLE} can name a folder with its functions.py")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extract("llm_microscope/functions.py", folder)
        return _read(Path(folder) / "llm_microscope" / "functions.py")


def _read(path: Path) -> Callable[[Tensor, Tensor], float]:
    spec = importlib.util.spec_from_file_location("llm_microscope_functions", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise SkippedError(
            f"{path} is not there; {VARIABLE} names the folder of llm-microscope {VERSION} that holds functions.py"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.procrustes_similarity


def _noise(theirs: Callable[[Tensor, Tensor], float]) -> list[Row]:
    """Independent Gaussian states, in which there is nothing to find: means of ten draws."""
    found = []
    for tokens, width in NOISE:
        scores = np.mean([_noise_scores(theirs, tokens, width, draw) for draw in range(DRAWS)], axis=0)
        name, expected = f"noise, {tokens} tokens × {width}", f"expected of it: {width / (tokens - 1):.3f}"
        found += [
            Beside(f"{name}: our held-out score / procrustes_similarity ({expected})", *scores[:2], goal=0, unit="R²"),
            Row(f"{name}: largest difference of our in-sample score to it", scores[2], goal=DIFFERENCE, unit="R²"),
        ]
    return found


def _noise_scores(theirs: Callable[[Tensor, Tensor], float], tokens: int, width: int, draw: int) -> tuple[float, ...]:
    generator = torch.Generator().manual_seed(draw)
    train, test = (torch.randn(2, 1, tokens, width, generator=generator) for _ in range(2))
    similarity = theirs(train[0, 0], train[1, 0])
    neutral = Pilot(torch.zeros(2, width), torch.full((2,), torch.inf))
    ours = lens.linearity(*(_moments([states], neutral, ((0, 1),), drop_first=False) for states in (train, test)))
    return ours.score.item(), similarity, abs(ours.score_in_sample.item() - similarity)


def _moments(states: Sequence[Tensor], found: Pilot, pairs: Sequence[Pair], *, drop_first: bool = True) -> Moments:
    into = Accumulator(found.shift, found.limits, pairs, drop_first=drop_first, source={})
    for batch in states:
        into.add(batch.clone())
    into.flush()
    return into.moments


def _real(theirs: Callable[[Tensor, Tensor], float], train: list[Tensor], test: list[Tensor], rounds: int) -> list[Row]:
    found, layers = pilot(train[0]), len(train[0]) - 1
    pairs = residual_pairs(layers, "adjacent")
    masks = [keep(states, found.limits, drop_first=True).tokens for states in train]
    kept = torch.cat([states[:, mask] for states, mask in zip(train, masks, strict=True)], dim=1)
    every = torch.cat([states.flatten(1, 2) for states in train], dim=1)
    results: dict[str, Any] = {}

    def ours() -> None:
        results["ours"] = lens.linearity(_moments(train, found, pairs), _moments(test, found, pairs))

    def peer() -> None:
        results["peer"] = np.array([theirs(kept[i], kept[j]) for i, j in pairs])

    best = minima({"ours": ours, "peer": peer}, rounds, warm_up=0)
    scores: xr.Dataset = results["ours"]
    held_out, similarity = scores.score.mean().item(), float(results["peer"].mean())
    unmasked = float(np.mean([theirs(every[i], every[j]) for i, j in pairs]))
    apart = float(np.abs(scores.score_in_sample.to_numpy() - results["peer"]).max())
    name, theirs_is = f"{layers} blocks, {kept.shape[1]} tokens", "procrustes_similarity"
    return [
        Row(f"{name}: largest difference of our in-sample score to {theirs_is}", apart, goal=DIFFERENCE, unit="R²"),
        Beside(f"{name}: our mean held-out score / mean {theirs_is}", held_out, similarity, unit="R²"),
        Beside("the same / with massive tokens and first positions left in, as published", held_out, unmasked, unit="R²"),
        Row(f"{name}: all our scores, gathering included / {theirs_is}", best["ours"], best["peer"]),
    ]
