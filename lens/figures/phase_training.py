"""Charts of a training as it goes on: losses beside those of paired trainings, and one of five pictures of what is inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, YELLOW, axis, chart, heat_map, lines, rule, series
from lens.figures.chart_parts import phase_colours

PICTURES = {
    "angles": "drift of the angles",
    "lengths": "lengths of the phases",
    "means": "sum of the phases' means",
    "shares": "share of equal channels",
    "difference": "difference to the others",
}
MOST_RUNS = 6  # beside each other, the train loss of one of them included in seven curves
_RUNS = (BLUE, GREEN, PURPLE, SKY, YELLOW, BLACK)
_BLOCKS = (SKY, BLUE, GREEN, PURPLE, YELLOW)
_MOST_CURVES = 6  # of phases; more are a map
_LEAST = 0.01  # an axis around a start shows at least so much of both sides


def phase_training_chart(paired: xr.Dataset, course: xr.Dataset, *, picture: str, layer: int) -> dict[str, Any]:
    """Losses of a training and of those that are paired with it, and beside them a picture of its phases.

    Args:
        paired: from `paired_training`; its first run is the one that is shown, at most six in all.
        course: of that run, from `phase_training`; of a model with angles with `decay_alone`, from `decay_course`.
        picture: one of `PICTURES`; `angles` asks for a model with angles, `difference` for a second run.
        layer: residual state of the phases' lengths, means and shares.

    Raises:
        InputError: another picture, or one that the training cannot give.
    """
    if picture not in pictures_of(paired, course):
        known = ", ".join(pictures_of(paired, course))
        raise InputError(f"The picture of {course.attrs['title']} is {picture!r}", f"one of {known}", "picture='lengths'")
    make: dict[str, Callable[[], dict[str, Any]]] = {
        "angles": lambda: _angles(course),
        "lengths": lambda: _lengths(course, layer),
        "means": lambda: _means(course, layer),
        "shares": lambda: _shares(course, layer),
        "difference": lambda: _difference(paired),
    }
    return chart([_losses(paired, course), make[picture]()])


def pictures_of(paired: xr.Dataset, course: xr.Dataset) -> tuple[str, ...]:
    """Names of the pictures that a training can give."""
    given = {"angles": "theta" in course, "difference": paired.sizes["run"] > 1}
    return tuple(name for name in PICTURES if given.get(name, True))


def _updates(course: xr.Dataset) -> dict[str, Any]:
    """All of them from the first, so that curves grow into a picture that stays."""
    return axis("updates", range=(0, course.attrs["steps"]))


def _losses(paired: xr.Dataset, course: xr.Dataset) -> dict[str, Any]:
    titles = paired["run"].to_numpy().tolist()
    alone = len(titles) == 1
    held = [
        series("held out" if alone else f"{title}, held out", values, colour=colour)
        for title, values, colour in zip(titles, paired["validation_loss"], _RUNS, strict=False)
    ]
    train = series("train" if alone else f"{titles[0]}, train", paired["train_loss"][0], colour=ORANGE)
    values = np.concatenate([paired["validation_loss"].to_numpy().ravel(), paired["train_loss"][0]])
    guess = float(np.log(course.attrs["vocabulary"]))
    low, high = np.floor(2 * min(np.nanmin(values), guess)) / 2, np.ceil(2 * max(np.nanmax(values), guess)) / 2
    return lines(
        "updates", paired["looked_at"], [held[0], train, *held[1:]], x_axis=_updates(course),
        y_axis=axis("loss", "nats/token", range=(low, high)), rules=[rule(guess, "uniform guess", on="y")],
    )  # fmt: skip


def _angles(course: xr.Dataset) -> dict[str, Any]:
    drift, decay = course["mean_drift"], course["decay_alone"].isel(block=-1)
    blocks = course["block"].to_numpy().tolist()
    shown = blocks if len(blocks) <= len(_BLOCKS) else [blocks[round(part * (len(blocks) - 1) / 4)] for part in range(5)]
    curves = [series(f"block {block}", drift.sel(block=block), colour=_BLOCKS[n]) for n, block in enumerate(shown)]
    curves.append(series(f"weight decay alone, block {blocks[-1]}", decay, colour=BLACK))
    return lines(
        "updates", course["looked_at"], curves, x_axis=_updates(course),
        y_axis=axis("mean drift of the angles", "rad", range=_around([*drift.to_numpy().ravel(), *decay.to_numpy()], 0.0)),
        rules=[rule(0, "start", on="y")],
    )  # fmt: skip


def _around(values: Any, centre: float) -> tuple[float, float] | None:
    """Ends of an axis for values that have hardly left their start, which would otherwise be magnified; None for others."""
    reach = float(np.nanmax(np.abs(np.asarray(values, dtype=float) - centre)))
    return (centre - _LEAST, centre + _LEAST) if reach < _LEAST else None


def _by_phase(course: xr.Dataset, values: xr.DataArray, title: str, at: dict[str, Any], more: Any = ()) -> dict[str, Any]:
    """Curves of few phases, a map of many."""
    phases = course["phase"].to_numpy().tolist()
    if len(phases) > _MOST_CURVES:
        return heat_map(
            "phases", course["looked_at"], phases, values.transpose("phase", "looked_at"), x_axis="updates", y_axis="phase",
            value_axis=title,
        )  # fmt: skip
    colours = phase_colours(len(phases))
    curves = [series(f"phase {phase}", values.sel(phase=phase), colour=colours[n]) for n, phase in enumerate(phases)]
    reach = _around(values, float(at["value"]))
    return lines(
        "updates", course["looked_at"], [*curves, *more], x_axis=_updates(course), y_axis=axis(title, range=reach), rules=[at]
    )


def _lengths(course: xr.Dataset, layer: int) -> dict[str, Any]:
    lengths = course["phase_norm"].sel(layer=layer)
    return _by_phase(course, lengths / lengths.mean("phase"), "length over the phases' mean", rule(1, "equal", on="y"))


def _means(course: xr.Dataset, layer: int) -> dict[str, Any]:
    total = series("their sum", course["residual"].sel(layer=layer), colour=BLACK)
    return _by_phase(course, course["phase_mean"].sel(layer=layer), "mean over channels", rule(0, "zero", on="y"), [total])


def _shares(course: xr.Dataset, layer: int) -> dict[str, Any]:
    shares = course["share"].sel(layer=layer)
    colours = {"equal channels": BLUE, "transported": ORANGE}
    curves = [series(str(name), shares.sel(direction=name), colour=colours[str(name)]) for name in shares["direction"].to_numpy()]
    return lines(
        "updates", course["looked_at"], curves, x_axis=_updates(course),
        y_axis=axis("squared cosine with the direction", range=(0, 1) if float(shares.max()) > 0.5 else None),
        rules=[rule(1 / course.attrs["model_hidden_size"], "chance", on="y")],
    )  # fmt: skip


def _difference(paired: xr.Dataset) -> dict[str, Any]:
    """Of every other run to the one that is shown, at the same held-out windows."""
    others = paired.isel(run=slice(1, None))
    curves = [
        series(str(title), values, colour=colour)
        for title, values, colour in zip(others["run"].to_numpy(), others["difference"], _RUNS[1:], strict=False)
    ]
    first = str(paired["run"][0].item())
    y_axis = axis(f"held-out loss less that of {first}", "nats/token", range=_around(others["difference"], 0.0))
    return lines(
        "updates", paired["looked_at"], curves, x_axis=axis("updates", range=(0, paired.attrs["steps"])), y_axis=y_axis,
        rules=[rule(0, first, on="y")],
    )  # fmt: skip
