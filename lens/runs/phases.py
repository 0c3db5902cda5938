"""The Three-Phase family trained from nothing: phases and controls of one size, with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import xarray as xr

from lens.probes.dataset import exact
from lens.probes.phase_training import phase_training
from lens.runs.run import Budget, Measure, Measured, NamedRun, Setting, Tally
from lens.training.phase_recipes import PhaseRecipe, phase_recipe
from lens.training.three_phase import train_three_phase


def pieces(budget: Budget) -> Mapping[str, Measure]:
    """What a step takes, and so the whole plan; then one training for each recipe and seed, a whole set of recipes at a time."""
    trainings: dict[str, Measure] = {
        f"{name}-seed{seed}": partial(_trained, name=name, seed=seed) for seed in budget["seeds"] for name in budget["recipes"]
    }
    return {"pace": _pace, **trainings}


_PACE = 20  # steps
_PHASES = [f"three-phase-n{count}" for count in (1, 2, 3, 4, 6, 8, 12)]
_CONTROLS = [
    "three-phase-rope-only", "three-phase-rope-only-scaled", "three-phase-no-horn", "three-phase-no-rotation",
    "three-phase-frozen-theta", "three-phase-no-theta-decay",
]  # fmt: skip
THREE_PHASE = NamedRun(
    "three-phase",
    "Three-Phase models of several numbers of phases and their controls, trained with paired seeds",
    {
        "cpu": {"recipes": ["three-phase-n1", "three-phase-n3", "three-phase-rope-only"], "seeds": [0], "steps": 100},
        "cuda": {
            "recipes": [*_PHASES, *_CONTROLS],
            "seeds": [0, 1, 2],
            "steps": 2000,
            "model": {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 12, "num_key_value_heads": 12},
            "text": {"vocabulary": 8192, "windows": 64},
            "learning_rate": 1e-3,
        },
    },
    pieces,
)


def _recipe(name: str, budget: Budget) -> PhaseRecipe:
    """The recipe at the size and length of the plan; all of one plan differ in nothing but what the recipe says."""
    found = phase_recipe(name).shortened(int(budget["steps"]))
    training = replace(found.training, learning_rate=budget.get("learning_rate", found.training.learning_rate))
    text = replace(found.text, **budget.get("text", {}))
    return replace(found, model={**found.model, **budget.get("model", {})}, training=training, text=text)


def _pace(setting: Setting) -> Measured:
    """A few steps of the first recipe: whether the plan fits the time that there is should be known before it is begun."""
    budget, folder = setting.budget, setting.folder / "models" / "pace"
    recipe = _recipe(budget["recipes"][0], {**budget, "steps": _PACE})
    trained = train_three_phase(recipe, seed=setting.seed, device=setting.device, folder=folder, check=setting.check)
    seconds = np.array([step.seconds for step in trained.record.steps])
    planned = len(budget["recipes"]) * len(budget["seeds"]) * int(budget["steps"])
    found = {
        "step_seconds": exact(("step",), seconds, "wall time of an update", "s"),
        "planned_steps": exact((), planned, "updates of all trainings of the plan"),
        "planned_seconds": exact((), planned * float(np.median(seconds)), "at the median, without what is read between", "s"),
    }
    return Measured(xr.Dataset(found, {"step": np.arange(1, _PACE + 1)}), trained.record.tokens)


def _trained(setting: Setting, *, name: str, seed: int) -> Measured:
    """A model stays beside the results, so that a training that was stopped goes on."""
    folder, done = setting.folder / "models" / f"{name}-seed{seed}", Tally()
    recipe = _recipe(name, setting.budget)
    trained = train_three_phase(
        recipe, seed=setting.seed + seed, device=setting.device, folder=folder, progress=done, check=setting.check
    )
    return Measured(phase_training(trained.record), done.steps * recipe.text.windows * recipe.text.length or None)
