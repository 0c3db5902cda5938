"""The Three-Phase family trained from nothing: phases and controls of one size, with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from lens.probes.phase_training import phase_training
from lens.runs.run import Budget, Measure, Measured, NamedRun, Setting
from lens.training.phase_recipes import PhaseRecipe, phase_recipe
from lens.training.three_phase import train_three_phase


def pieces(budget: Budget) -> Mapping[str, Measure]:
    """One training for each recipe and seed."""
    return {
        f"{name}-seed{seed}": partial(_trained, name=name, seed=seed) for seed in budget["seeds"] for name in budget["recipes"]
    }


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
            "steps": 3000,
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


def _trained(setting: Setting, *, name: str, seed: int) -> Measured:
    """A model stays beside the results, so that a training that was stopped goes on."""
    folder = setting.folder / "models" / f"{name}-seed{seed}"
    recipe = _recipe(name, setting.budget)
    trained = train_three_phase(recipe, seed=setting.seed + seed, device=setting.device, folder=folder, check=setting.check)
    return Measured(phase_training(trained.record), trained.record.tokens)
