"""Records of named runs: the line under a figure that says where its numbers were made, and charts of what runs measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLUE, GREEN, ORANGE, PURPLE, SKY, axis, bars, chart, lines, series
from lens.figures.early_exit import NAMES

PREFIX = "run_"
_NEEDED = ("device", "device_name", "threads", "date", "commit", "command")
_SHORT = 7  # digits of a commit


def caption(dataset: xr.Dataset) -> str:
    """Where, when and with what a shipped record was made, as one line to stand under its figure.

    Args:
        dataset: a piece of a named run.

    Returns:
        Device (with threads of a CPU, driver of a GPU), date, commit and command.

    Raises:
        InputError: no piece of a named run.
    """
    facts = {name: dataset.attrs.get(f"{PREFIX}{name}") for name in _NEEDED}
    missing = [name for name, value in facts.items() if value is None]
    if missing:
        found = f"The Dataset does not say its {', '.join(missing)}"
        raise InputError(found, "a piece of a named run", "lens.run_record('smollm2-moments').pieces['rate']")
    commit = str(facts["commit"])
    code = f", commit {commit[:_SHORT]}{'+' if commit.endswith('+') else ''}" if commit else ""
    return f"Made on {facts['device_name']} ({_device(dataset, facts)}), {str(facts['date'])[:10]}{code}: `{facts['command']}`"


def _device(dataset: xr.Dataset, facts: Mapping[str, Any]) -> str:
    if facts["device"] == "cuda":
        return f"GPU, driver {dataset.attrs.get(f'{PREFIX}driver', 'unknown')}"
    return f"CPU, {facts['threads']} thread{'s' if facts['threads'] != 1 else ''}"


def record_rows(records: xr.Dataset) -> list[list[str | int]]:
    """Runs × devices as rows of a table: run, device, pieces, minutes, device's name, date; empty where there is no record.

    Args:
        records: from `lens.run_records()`.
    """
    rows: list[list[str | int]] = []
    for run in records.run.to_numpy():
        for device in records.device.to_numpy():
            one = records.sel(run=run, device=device)
            there = int(one.pieces) > 0
            rows.append([
                str(run), str(device),
                f"{int(one.pieces)} of {int(one.planned_pieces)}",
                f"{float(one.seconds) / 60:.1f}" if there else "",
                str(one.device_name.item()), str(one.date.item())[:10],
            ])  # fmt: skip
    return rows


def linear_chart(linearity: xr.Dataset, shortcuts: xr.Dataset) -> dict[str, Any]:
    """Held-out R² of a matrix in the place of one block, and in the place of all that are left.

    Args:
        linearity: from `lens.linearity`.
        shortcuts: from the score of `Shortcuts`, with the pairs that lead to the last layer.
    """
    blocks = lines(
        "blocks", linearity.block,
        [series("whole state", linearity.score, colour=BLUE), series("update alone", linearity.score_update, colour=ORANGE)],
        x_axis="block", y_axis=axis("R² of one matrix in its place", range=(_foot(linearity.score_update), 1.0)),
    )  # fmt: skip
    last = int(shortcuts.to_layer.max())
    final = shortcuts.isel(pair=np.flatnonzero(shortcuts.to_layer == last)).sortby("from_layer")
    kept = final.identity_r2_pooled
    rest = lines(
        "layers", final.from_layer,
        [series("one matrix", final.r2_pooled, colour=BLUE), series("unchanged state", kept, colour=PURPLE)],
        x_axis="layer", y_axis=axis(f"R² of layer {last}", range=(_foot(kept), 1.0)),
    )  # fmt: skip
    return chart([blocks, rest])


def exit_chart(exits: xr.Dataset) -> dict[str, Any]:
    """What leaving early saves and costs, over the threshold; `exits` from `lens.early_exit`."""
    shown = exits.isel(strictness=np.flatnonzero(exits.strictness >= 0))
    plots = []
    for measure, title in (("layers_saved", "share of layers saved"), ("agreement", "share of words that stay")):
        found = [series(NAMES[lens], shown[measure].sel(lens=lens)) for lens in shown.lens.to_numpy()]
        plots.append(lines(measure, shown.strictness, found, x_axis="strictness λ", y_axis=axis(title, range=(0.0, 1.0))))
    return chart(plots)


def heads_chart(batteries: Mapping[int, Sequence[xr.Dataset]], measures: Mapping[str, str]) -> dict[str, Any]:
    """Measures of attention by block, mean over heads and texts, at several lengths of the text.

    Args:
        batteries: tokens of the text to the results of `lens.attention_battery` of several texts.
        measures: variables of these to titles, at most three.
    """
    colours = (SKY, BLUE, GREEN, ORANGE)
    plots = []
    for measure, title in measures.items():
        found = [
            series(f"{tokens} tokens", xr.concat([one[measure] for one in several], "text").mean(("text", "head")), colour=colour)
            for (tokens, several), colour in zip(sorted(batteries.items()), colours, strict=False)
        ]
        block = next(iter(batteries.values()))[0].block
        plots.append(lines(measure, block, found, x_axis="block", y_axis=title))
    return chart(plots)


def losses_chart(trainings: Mapping[str, xr.Dataset], every: int = 5) -> dict[str, Any]:
    """Losses of several trainings over their updates, means of `every` of them; at most four."""
    smooth = {name: course.train_loss.coarsen(step=every, boundary="trim").mean() for name, course in trainings.items()}
    colours = (BLUE, GREEN, ORANGE, PURPLE)
    found = [series(name, losses, colour=colour) for (name, losses), colour in zip(smooth.items(), colours, strict=False)]
    steps = next(iter(smooth.values())).step
    return chart([lines("losses", steps, found, x_axis="update", y_axis=axis("training loss", "nats a token"), marks=False)])


def latency_chart(panels: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """Of every panel, slowest first: until its first picture, and the least time of its slowest control to the next one.

    Args:
        panels: pieces of the run `panels` by name.
    """
    slowest = {name: float(piece.least.max()) for name, piece in panels.items()}
    names = sorted(panels, key=lambda name: -slowest[name])
    moved = [f"{name}: {panels[name].control[int(panels[name].least.argmax('control'))].item()}" for name in names]
    opening = [float(panels[name].next_opening) for name in names]
    first = bars(
        "controls", moved, {"least": [slowest[name] for name in names]}, label_axis="", value_axis=axis("slowest control", "s")
    )
    second = bars("opening", names, {"opening": opening}, label_axis="", value_axis=axis("until the picture", "s"))
    return chart([first, second])


def _foot(values: xr.DataArray) -> float:
    return min(0.0, float(np.floor(10 * np.nanmin(values)) / 10))
