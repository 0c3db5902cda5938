"""What the training panel says in words: how far a training is, what it found, how long the next one takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr

_LOOKS_SHARE = 1.35  # time of a whole training over that of its updates: looks on the way, test documents at the end


def chip_of(result: Any) -> str:
    """What runs and how long it still takes; else how the chosen training stands."""
    if result.running is not None:
        title, training = result.running
        text = f"{title}: {_progress(training)}" if training.running else title
        return f"{text} · then {', then '.join(result.waiting)}" if result.waiting else text
    training = result.training
    if training is None:
        return ""
    if training.state == "finished":
        return f"{training.steps:,} updates in {_duration(training.record.seconds)}"
    if training.state == "stopped":
        return f"stopped after {training.done:,} of {training.steps:,} updates"
    return f"not trained here yet: {_cost(result)}"


def about(result: Any) -> str:
    """What pressing Start would cost, for a hover."""
    if result.training is None or result.training.state not in ("new", "stopped", "failed"):
        return ""
    fetch = result.training.to_fetch
    first = f"Fetches {fetch / 1e6:.0f} MB of text first, once. " if fetch else ""
    source = "as measured here" if result.here else "as in the shipped record, measured on another day or machine"
    return f"{first}{_cost(result).capitalize()}, at {_pace(result.pace)}, {source}."


def says(result: Any, view: Mapping[str, Any]) -> str:
    """The shown run in one sentence, what is inside it, or what is still to be done, in a second one."""
    return f"{_losses(result)} {_second(result, view)}".strip()


def _losses(result: Any) -> str:
    course, runs = result.course, result.runs
    last, steps = int(course["looked_at"][-1]), int(course.attrs["steps"])
    held = course["validation_loss"].to_numpy()
    when = f"after {last:,} updates" if last == steps else f"after {last:,} of {steps:,} updates"
    title = course.attrs["title"]
    whose = f"In the shipped record {title}" if result.record is None else title[0].upper() + title[1:]
    text = f"{whose} costs {held[-1]:.2f} nats a token on held-out text {when}"
    if not last:
        return f"{whose} costs {held[-1]:.2f} nats a token on held-out text before the first update."
    if int(course["looked_at"][0]) == 0:
        text += f", {held[0]:.2f} before the first"
    return f"{text}{_others(runs)}."


def _others(runs: xr.Dataset) -> str:
    """What up to two paired trainings cost against the shown one: on test documents if all are finished, else at a look."""
    count = min(runs.sizes["run"], 3)
    if count < 2:
        return ""
    tested = runs["test_difference"].to_numpy()[1:count]
    if (tested == tested).all():
        told = [f"{_name(runs, n)} costs {_gap(runs, n)}" for n in range(1, count)]
        return f"; against it, {' and '.join(told)} on test documents (one seed)"
    told = [text for n in range(1, count) if (text := _so_far(runs, n))]
    return f"; against it, {' and '.join(told)}" if told else ""


def _so_far(runs: xr.Dataset, n: int) -> str:
    gaps = runs["difference"][n].dropna("looked_at")
    if not gaps.size:
        return ""
    return f"{_name(runs, n)} costs {_signed(float(gaps[-1]))} after {int(gaps['looked_at'][-1]):,}"


def _name(runs: xr.Dataset, n: int) -> str:
    return str(runs["run"][n].item())


def _gap(runs: xr.Dataset, n: int) -> str:
    gap, low, high = (float(runs[name][n]) for name in ("test_difference", "low", "high"))
    return f"{_signed(gap)} [{_signed(low)}, {_signed(high)}]"


def _signed(value: float) -> str:
    """A difference with its sign, a true minus."""
    return f"{value:+.3f}".replace("-", "−")


def _second(result: Any, view: Mapping[str, Any]) -> str:
    if result.choice is not None and not result.shows_choice and result.training is not None and not result.training.running:
        return _to_do(result)
    told: dict[str, Callable[[xr.Dataset, int], str]] = {
        "angles": _angles, "lengths": _lengths, "means": _means, "shares": _shares, "difference": _difference
    }  # fmt: skip
    return told[view["picture"]](result.course, view["layer"])


def _to_do(result: Any) -> str:
    """Where the chosen training stands while another one is shown, and what it would take."""
    title, training = result.choice.title, result.training
    chosen = f"{title[0].upper()}{title[1:]} with {training.steps:,} updates"
    fetch = f", and {training.to_fetch / 1e6:.0f} MB of text are fetched first" if training.to_fetch else ""
    stands = f"was stopped after {training.done:,}" if training.done else "is not trained yet"
    return f"{chosen} {stands}: {_cost(result)}{fetch}."


def _angles(course: xr.Dataset, _layer: int) -> str:
    drift, decay = float(course["mean_drift"][-1, -1]), float(course["decay_alone"][-1, -1])
    block = int(course["block"][-1])
    if not int(course["looked_at"][-1]):
        return "Curves grow from the first updates on."
    alone = f"weight decay alone would give {_signed(decay)}" if decay else "weight decay leaves them alone"
    return f"The angles of block {block} have moved by {_signed(drift)} rad on average; {alone}."


def _lengths(course: xr.Dataset, layer: int) -> str:
    lengths = course["phase_norm"].sel(layer=layer)
    now = (lengths / lengths.mean("phase"))[-1]
    return (
        f"At layer {layer} the longest phase{_cut(course)} has {float(now.max()):.3f} times the mean length, the shortest "
        f"{float(now.min()):.3f} times."
    )


def _cut(course: xr.Dataset) -> str:
    parts, own = course.sizes["phase"], int(course.attrs["model_num_phases"])
    return "" if parts == own else f" of {parts}, which this model has by our cutting alone,"


def _means(course: xr.Dataset, layer: int) -> str:
    total = float(course["residual"].sel(layer=layer)[-1])
    if layer == 0 and course.attrs.get("model_horn", "fixed") == "fixed":
        return f"At the embedding the sum, {total:.3f}, is what the horn sets, whatever was learned: no finding."
    return f"At layer {layer} the means of the phases sum to {_signed(total)}."


def _shares(course: xr.Dataset, layer: int) -> str:
    share = float(course["share"].sel(layer=layer, direction="equal channels")[-1])
    chance = 1 / int(course.attrs["model_hidden_size"])
    return f"At layer {layer} equal channels hold {100 * share:.2g} % of the state, by chance it would be {100 * chance:.2g} %."


def _difference(_course: xr.Dataset, _layer: int) -> str:
    return "All began with the same weights and saw the same windows; another seed may order them otherwise."


# -- time ---------------------------------------------------------------------------------------------------------------


def _progress(training: Any) -> str:
    if training.state != "training":
        return training.doing
    left = (training.steps - training.done) * (training.pace or 0.0) * _LOOKS_SHARE
    rate = f" · {_pace(training.pace)} · about {_duration(left)} left" if training.pace else ""
    return f"{training.done:,} of {training.steps:,} updates{rate}"


def _cost(result: Any) -> str:
    left = result.training.steps - result.training.done
    what = f"the other {left:,}" if result.training.done else f"{left:,} updates"
    return f"{what} take about {_duration(left * result.pace * _LOOKS_SHARE)}"


def _pace(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms each" if seconds < 1 else f"{seconds:.1f} s each"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
