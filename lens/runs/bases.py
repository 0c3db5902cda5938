"""Byte models trained from nothing at several rotary bases, then read beyond the length that they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lens.probes.rope_training import rope_training
from lens.runs.run import Budget, Measure, Measured, NamedRun, Setting, Tally
from lens.training.rope_bases import LENGTH, RECIPE, WINDOWS, train_rope_bases, write_rope_bases


def pieces(budget: Budget) -> Mapping[str, Measure]:
    """One piece: a training is kept in the cache as soon as it is finished, and a stopped one goes on."""
    return {"trainings": _trainings}


ROPE_BASES = NamedRun(
    "rope-bases",
    "Byte models trained at several rotary bases and read beyond their length",
    {"cpu": {"bases": [100.0, 10_000.0], "seeds": [0], "steps": 60}, "cuda": {"bases": None, "seeds": [0, 1], "steps": 3000}},
    pieces,
)


def _trainings(setting: Setting) -> Measured:
    budget, steps = setting.budget, int(setting.budget["steps"])
    recipe = replace(RECIPE, steps=steps, warm_up=min(RECIPE.warm_up, steps // 10))
    chosen = {} if budget["bases"] is None else {"bases": budget["bases"]}
    seeds = [setting.seed + seed for seed in budget["seeds"]]
    done, device = Tally(), str(setting.device)
    runs = list(train_rope_bases(seeds=seeds, recipe=recipe, device=device, progress=done, check=setting.check, **chosen))
    record = write_rope_bases(setting.folder / "trainings.jsonl", runs, "lens runs start rope-bases")
    return Measured(rope_training(record), done.steps * WINDOWS * LENGTH or None)
