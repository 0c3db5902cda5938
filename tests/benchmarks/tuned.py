"""One layer's closed-form map against a tuned lens that is trained until it reads held-out text as well."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import torch

import lens
from lens.base.errors import Cancelled
from lens.base.progress import Step
from lens.corpora import Corpus
from lens.models.model import Model
from lens.probes.divergence import DivergenceLoss, Translators, mean_divergence
from lens.probes.tuned_lens import SMALL, TunedLens, require_windows
from lens.training import train
from tests.benchmarks.measure import Row

LAYER = 15
WINDOW = 128
PER_STEP = 3  # windows, as many as the recipe for two cores takes
LOOK_EVERY = 20  # steps
RECIPE = replace(SMALL, name="tuned-lens-until-as-good", steps=240)
HELD_OUT = 2048  # validation tokens


def rows(_repeats: int) -> list[Row]:
    """Processor time of both and KL of both; a single round, because a training takes minutes."""
    model, corpus = lens.load("smollm2-135m", device="cpu"), lens.corpus("wikipedia")
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"LENS_CACHE": folder}):
        start = time.process_time()
        moments = lens.collect_moments(model, corpus, pairs=[(LAYER, model.n_layers)]).train
        gathering = time.process_time() - start
    start = time.process_time()
    shortcut = lens.fit_shortcuts(moments)
    fitting = time.process_time() - start
    print(f"  shortcut: {gathering:.1f} s of gathering, {fitting:.2f} s of solving", flush=True)
    held_out = require_windows(model, corpus, "validation", HELD_OUT, WINDOW)
    goal = mean_divergence(model, held_out, [shortcut], [LAYER]).item()
    steps, seconds, reached = _trained(model, corpus, held_out, goal)
    name, share = f"a tuned lens after {steps} steps from the identity", gathering / model.n_layers
    return [
        Row(f"KL(final‖lens) on held-out text, layer {LAYER}: {name} / shortcut", reached, goal, 1, unit="nats"),
        Row("shortcut map, with a whole pass for it alone / that training, processor time", gathering + fitting, seconds),
        Row(f"shortcut map, with its share of a pass for {model.n_layers} maps / the same", share + fitting, seconds),
        Row("solving for the map alone / the same", fitting, seconds),
    ]


def _trained(model: Model, corpus: Corpus, held_out: Sequence[list[int]], goal: float) -> tuple[int, float, float]:
    """Steps, their processor time, and held-out KL of a training that stops as soon as it is as good as `goal`."""
    windows = require_windows(model, corpus, "train", RECIPE.steps * PER_STEP * WINDOW, WINDOW)
    module = Translators({LAYER: torch.zeros(model.d_model, model.d_model)}, {LAYER: torch.zeros(model.d_model)})
    steps, seconds, reached = 0, 0.0, float("inf")
    start = time.process_time()

    def look(step: Step) -> None:
        nonlocal steps, seconds, reached, start
        if step.done % LOOK_EVERY:
            return
        steps, seconds = step.done, seconds + time.process_time() - start
        found = TunedLens(*module.maps(), {"model_fingerprint": model.fingerprint})
        reached = mean_divergence(model, held_out, [found], [LAYER]).item()
        print(f"  {steps} steps: {reached:.3f} nats ({goal:.3f} wanted), {seconds:.1f} s", flush=True)
        if reached <= goal:
            raise Cancelled
        start = time.process_time()

    with contextlib.suppress(Cancelled):
        train(RECIPE, module, DivergenceLoss(model, module, windows, PER_STEP, RECIPE.seed, None), progress=look)
    return steps, seconds, reached
