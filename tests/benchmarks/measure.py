"""Interleaved timing, rows of the table, and facts about the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30

# Of the project's own making; 64 tokens and more for SmolLM2.
TEXT = (
    "Paris is the capital of France and has been one for most of a thousand years. The river Seine runs through it from east to "
    "west, past the islands on which the city began, and thirty-seven bridges cross the water within its limits. Every summer "
    "some streets along the river are closed to cars, and people bring chairs, books and bread to sit in the sun."
)


class SkippedError(Exception):
    """A benchmark that cannot run here, and what it would need."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was measured, and beside what.
        ours: our figure.
        baseline: the figure it is held against, or None.
        goal: highest ratio where there is a baseline, else highest figure; None where nothing was promised.
        unit: `s`, `GiB`, `kB`, `nats` or `cells`.
        strict: the goal itself is already too much.
    """

    name: str
    ours: float
    baseline: float | None = None
    goal: float | None = None
    unit: str = "s"
    strict: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours over the baseline."""
        return self.ours / self.baseline if self.baseline else None

    def cells(self) -> tuple[str, ...]:
        """Name, baseline, ours, ratio, goal and whether it was reached, as text."""
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        baseline = "" if self.baseline is None else _figure(self.baseline, self.unit)
        return self.name, baseline, _figure(self.ours, self.unit), ratio, *self._verdict()

    def _verdict(self) -> tuple[str, str]:
        if self.goal is None:
            return "", ""
        held = self.ratio if self.ratio is not None else self.ours
        reached = held < self.goal if self.strict else held <= self.goal
        unit = "" if self.ratio is not None else f" {self.unit}"
        return f"{'<' if self.strict else '≤'} {self.goal:g}{unit}", "reached" if reached else "MISSED"


def _figure(value: float, unit: str) -> str:
    if unit == "cells":
        return f"{value:.0f} {unit}"
    if unit == "nats":
        return f"{value:.1e} {unit}"
    return f"{value:.4g} {unit}" if value >= 1 else f"{value:.4f} {unit}"


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [("measured", "baseline", "ours", "ratio", "goal", ""), *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    lines.insert(1, tuple("-" * width for width in widths))
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def minima(cases: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 2) -> dict[str, float]:
    """Shortest time of each case in seconds. The cases take turns, so that a busy moment strikes all of them."""
    best = dict.fromkeys(cases, float("inf"))
    for turn in range(warm_up + repeats):
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
            if turn >= warm_up:
                best[name] = min(best[name], seconds)
    return best


def on_processor(call: Callable[[], Any], name: str, best: dict[str, float]) -> Callable[[], None]:
    """The call, whose shortest processor time, of all threads together, is noted: other programs disturb it less."""

    def timed() -> None:
        start = time.process_time()
        call()
        best[name] = min(best.get(name, float("inf")), time.process_time() - start)

    return timed


def machine_facts() -> str:
    """Processor, cores, threads and versions; nothing that names the machine."""
    import torch

    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    waiting = os.environ.get("OMP_WAIT_POLICY", "not set")
    return (
        f"{_processor()}, {cores} cores, {torch.get_num_threads()} torch threads, OMP_WAIT_POLICY {waiting}; "
        f"Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
