"""What the token grid sends to the browser for 64 tokens."""

from __future__ import annotations

import json
from typing import Any

import lens
from lens.figures.logit_lens import grid_spec
from tests.benchmarks.measure import TEXT, Row, minima

GOAL_KB = 58  # the arrays of an early drawing of the grid


def rows(repeats: int) -> list[Row]:
    """Size and building time of the description of 31 × 64 cells."""
    model = lens.load("smollm2-135m", device="cpu")
    dataset = lens.logit_lens(model.run(model.encode(TEXT)[:64]))
    cells = f"{dataset.sizes['layer']} × {dataset.sizes['position']} cells"
    arrays, rest = _sizes(grid_spec(dataset))
    best = minima({"build": lambda: grid_spec(dataset)}, repeats)
    return [
        Row(f"grid_spec, {cells}: binary arrays", arrays / 1000, goal=GOAL_KB, unit="kB"),
        Row(f"grid_spec, {cells}: words, sentences and all else as JSON", rest / 1000, unit="kB"),
        Row(f"grid_spec, {cells}: building it", best["build"]),
    ]


def _sizes(spec: dict[str, Any]) -> tuple[int, int]:
    """Bytes of the arrays, and of everything else as JSON."""
    arrays = {name: value for name, value in spec.items() if isinstance(value, dict) and "data" in value}
    rest = {name: value for name, value in spec.items() if name not in arrays}
    headers = {name: {"dtype": value["dtype"], "shape": value["shape"]} for name, value in arrays.items()}
    text = json.dumps(rest | headers, ensure_ascii=False, separators=(",", ":"))
    return sum(len(value["data"]) for value in arrays.values()), len(text.encode("utf-8"))
