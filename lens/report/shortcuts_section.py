"""How much of the last layer one matrix finds in an earlier one, and which words are read through it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from lens.figures.early_exit import early_exit_chart
from lens.figures.export import table_csv
from lens.figures.linear_shortcuts import shortcut_chart
from lens.figures.report import Picture, Section, Table
from lens.figures.report_plots import kl_plot
from lens.probes.compare_lenses import SOURCE
from lens.report.words import lens_name, percent, thinned
from lens.report.work import Work

_HALF = 0.5


def section(work: Work) -> Section:
    """R² of the maps, then first words and KL of every lens by layer."""
    score, readings = work.score, work.readings
    last = work.model.n_layers
    to_last = score.isel(pair=(score.to_layer == last).to_numpy())
    middle = to_last.isel(pair=int(np.abs(to_last.from_layer.to_numpy() - last / 2).argmin()))
    layer = int(middle.from_layer)
    explained = (
        f"From layer {layer} of {last}, one matrix explains {percent(float(middle.r2_pooled))} of the variance of the last layer "
        "on text that it was not fitted on"
    )
    unchanged = percent(float(middle.identity_r2_pooled))
    agreement = _agreement(readings)
    words = early_exit_chart(readings, work.exits, "precision_1")["plots"][0]
    pairs, profile = shortcut_chart(score, work.floor, last)["plots"]
    lenses = [str(lens) for lens in readings.lens.to_numpy()]
    return Section(
        "shortcuts",
        "Linear shortcuts",
        says=[
            f"{explained}; the unchanged state explains {unchanged}, a map fitted on shuffled tokens "
            f"{percent(float(work.floor.shuffled_r2.max()))}.",
            agreement,
        ],
        notable=[f"{explained}.", agreement],
        pictures=[
            Picture(profile, "R² of the maps to the last layer", layer),
            Picture(pairs, "R² between any two of some layers", [layer, last]),
            Picture(words, "First words that are the model's own, with 95 % intervals over articles"),
            Picture(kl_plot(readings), "Distance of what is read from what the model says"),
        ],
        tables=[
            Table(
                "lenses", "First words that are the model's own, and KL(model‖lens) in nats; some of the layers",
                ("layer", *(f"{lens_name(lens)}, {what}" for lens in lenses for what in ("first word", "KL"))),
                [[int(readings.layer[k]), *_row(readings, k)] for k in thinned(readings.sizes["layer"])],
                table_csv(readings, [*_VARIABLES], ["lens", "layer", "k"]),
            ),
            Table(
                "shortcuts", "R² of the maps to the last layer", ("from layer", "map", "unchanged state"),
                [[int(row.from_layer), float(row.r2_pooled), float(row.identity_r2_pooled)]
                 for row in (to_last.isel(pair=k) for k in thinned(to_last.sizes["pair"]))],
                table_csv(score, [str(name) for name in score.data_vars], ["pair"]),
            ),
        ],
        how=f"maps {work.said()}; ridge 0.0001 of the mean variance. Words of {readings.attrs['tokens']:,} tokens of "
        f"{readings.attrs['documents']} other articles, windows of {readings.attrs['window']}, first positions left out.",
        source=SOURCE,
    )  # fmt: skip


_VARIABLES = ("precision", "precision_low", "precision_high", "surprisal", "kl_to_final", "kl_low", "kl_high")


def _agreement(readings: xr.Dataset) -> str:
    """The first layer at which each lens reads half of the first words, in words."""
    found = []
    for lens in readings.lens.to_numpy():
        right = readings.precision.sel(lens=lens, k=1).to_numpy()
        first = int(readings.layer[int((right >= _HALF).argmax())])
        only = ", the last one," if first == int(readings.layer[-1]) else ""
        found.append(f"{first}{only} for the {lens_name(lens)}")
    return f"The first layer at which half of the model's first words are read is {', '.join(found[:-1])} and {found[-1]}."


def _row(readings: xr.Dataset, place: int) -> list[float]:
    at = readings.isel(layer=place)
    return [
        float(value)
        for lens in readings.lens.to_numpy()
        for value in (at.precision.sel(lens=lens, k=1), at.kl_to_final.sel(lens=lens))
    ]
