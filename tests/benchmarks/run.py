"""One pass of 32 tokens that keeps its residual stream, against the bare module."""

from __future__ import annotations

import torch

import lens
from tests.benchmarks.measure import TEXT, Row, minima

GOAL = 1.05


def rows(repeats: int) -> list[Row]:
    """`model.run` against the module's own forward, with its head and without."""
    model = lens.load("smollm2-135m", device="cpu")
    ids = model.encode(TEXT)[:32]
    batch = torch.tensor([ids])

    def bare(module) -> None:
        with torch.no_grad():
            module(input_ids=batch, use_cache=False)

    cases = {
        "bare": lambda: bare(model.module),
        "run": lambda: model.run(ids),
        "bare stack": lambda: bare(model.module.base_model),
        "run without logits": lambda: model.run(ids, logits=False),
    }
    best = minima(cases, repeats * 3)  # A pass is short beside the machine's own noise.
    return [
        Row("run, 32 tokens / bare forward", best["run"], best["bare"], GOAL),
        Row("run without logits, 32 tokens / bare stack", best["run without logits"], best["bare stack"], GOAL),
    ]
