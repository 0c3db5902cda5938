"""From a slider to its picture: the explorer of rotary positions in a real JupyterLab in Chromium."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.measure import Row, SkippedError
from tests.browser.lab import MissingError, chromium, jupyterlab

MOVES = 50
GOAL = 0.150  # seconds, 95th percentile
LOADING = 120_000  # milliseconds
_KEYS = ["ArrowRight" if (n // 10) % 2 == 0 else "ArrowLeft" for n in range(MOVES + 5)]
_CELL = "from lens.panels.rope_explorer import RopeExplorer\nRopeExplorer({settings})"
_CASES = {
    "base, 4,096 tokens": ("base", "width=128, context=4096"),
    "base, YaRN over 131,072 tokens": ("base", "model='Qwen2.5-72B, YaRN 4'"),
    "base, YaRN over 1,048,576 tokens": ("base", "'yarn', width=128, context=2**20, original_max_position_embeddings=32768"),
    "position, 131,072 tokens": ("position", "model='Qwen2.5-72B, YaRN 4'"),
}
_IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
# One key on the slider's handle; the time until the frame after the one in which the picture has changed.
_MOVE = """async ([name, key]) => {
  const panel = document.querySelector(".lens-panel");
  const slider = [...panel.querySelectorAll(".widget-hslider")].find((one) => one.querySelector("label").textContent === name);
  const handle = slider.querySelector(".noUi-handle");
  const picture = panel.querySelector(".lens-chart-row");
  const frame = () => new Promise(requestAnimationFrame);
  const changed = new Promise((resolve) => {
    const watch = new MutationObserver(() => { watch.disconnect(); resolve(); });
    watch.observe(picture, { subtree: true, attributeFilter: ["d"] });
  });
  const start = performance.now();
  handle.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  await changed;
  await frame();
  await frame();
  return (performance.now() - start) / 1000;
}"""


def rows(repeats: int) -> list[Row]:
    """The 95th percentile of the moves of each slider, and the median beside it."""
    found = []
    try:
        with started() as (lab, browser):
            for name, (slider, settings) in _CASES.items():
                # The first ones only warm up.
                seconds = moves(lab, browser, _CELL.format(settings=settings), slider, _KEYS)[5:]
                high, middle = np.quantile(seconds, [0.95, 0.5])
                found += [
                    Row(f"explorer: slider {name}, 95th percentile of {MOVES} moves", float(high), goal=GOAL),
                    Row(f"explorer: slider {name}, median", float(middle)),
                ]
    except MissingError as missing:
        raise SkippedError(str(missing)) from missing
    return found


@contextmanager
def started() -> Iterator[tuple[Any, Any]]:
    """A JupyterLab in a folder of its own, and a browser."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        (Path(folder) / "notebooks").mkdir()
        with jupyterlab(Path(folder)) as lab:
            yield lab, browser


def moves(lab: Any, browser: Any, cell: str, slider: str, keys: Sequence[str]) -> list[float]:
    """Seconds from a key on a slider of the panel that a cell shows to the second frame after the picture has changed."""
    (lab.folder / "panel.ipynb").write_text(json.dumps(_notebook(cell)), encoding="utf-8")
    with browser.new_context(viewport={"width": 1400, "height": 900}) as context:
        page = context.new_page()
        page.goto(lab.address("panel.ipynb"), timeout=LOADING)
        page.wait_for_function(_IDLE, timeout=LOADING)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.locator(".lens-panel .lens-chart-curves path").first.wait_for(state="attached", timeout=LOADING)
        page.wait_for_function(_IDLE, timeout=LOADING)
        seconds = [page.evaluate(_MOVE, [slider, key]) for key in keys]
        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    return seconds


def _notebook(source: str) -> dict[str, Any]:
    cell = {"cell_type": "code", "execution_count": None, "id": "panel", "metadata": {}, "outputs": [], "source": source}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
