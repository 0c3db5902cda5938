"""The logit lens on 31 states of 32 tokens, against the matrix product that it cannot do without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import lens
from tests.benchmarks.measure import TEXT, Row, minima

GOAL = 1.4
TILES = (512, 1024, 2048, 4096)


def rows(repeats: int) -> list[Row]:
    """`lens.logit_lens` against the product in one call, and against the product in its best tiling."""
    return [row for dtype in ("float32", "bfloat16") for row in _rows(dtype, repeats)]


def _rows(dtype: str, repeats: int) -> list[Row]:
    model = lens.load("smollm2-135m", device="cpu", dtype=dtype)
    run = model.run(model.encode(TEXT)[:32])
    with torch.no_grad():
        states = model.readout.normalise(run.residual).flatten(0, 1)
    head = model.readout.head.weight.detach()
    best = minima({"lens": lambda: lens.logit_lens(run), **_products(states, head)}, repeats)
    tile = min(TILES, key=lambda width: best[f"{width}"])
    shape = f"[{len(states)}, {states.shape[1]}] @ [{head.shape[1]}, {len(head)}]"
    return [
        Row(f"logit_lens, {dtype} / product {shape} in one call", best["lens"], best["one call"], GOAL),
        Row(f"logit_lens, {dtype} / product in tiles of {tile}", best["lens"], best[f"{tile}"]),
    ]


def _products(states: Tensor, head: Tensor) -> dict[str, Callable[[], Any]]:
    def tiled(width: int) -> Callable[[], Any]:
        tile = torch.empty((len(states), width), dtype=states.dtype)

        def product() -> None:
            for start in range(0, len(head), width):
                torch.mm(states, head[start : start + width].T, out=tile)

        return product

    # All widths divide the vocabulary of 49,152.
    return {"one call": lambda: states @ head.T, **{f"{width}": tiled(width) for width in TILES}}
