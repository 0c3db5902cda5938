"""What stopping early would save."""

from __future__ import annotations

import xarray as xr

from lens.figures.early_exit import early_exit_chart
from lens.figures.export import table_csv
from lens.figures.report import Picture, Section, Table
from lens.probes.early_exit import SOURCE
from lens.report.words import lens_name
from lens.report.work import Work

_STRICTNESS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def section(work: Work) -> Section:
    """Blocks saved against agreement, for every lens."""
    exits = work.exits
    lenses = [str(lens) for lens in exits.lens.to_numpy()]
    saved = {lens: exits.sel(lens=lens) for lens in lenses}
    told = [
        f"{100 * float(found.saved_at_95):.1f} % of the blocks by the {lens_name(lens)} (95 % interval "
        f"{100 * float(found.saved_at_95_low):.1f} to {100 * float(found.saved_at_95_high):.1f} %)"
        for lens, found in saved.items()
    ]
    best = max(lenses, key=lambda lens: float(exits.saved_at_95.sel(lens=lens)))
    rows = [[value, *(number for lens in lenses for number in _at(exits.sel(lens=lens), value))] for value in _STRICTNESS]
    curve = early_exit_chart(work.readings, exits)["plots"][1]
    return Section(
        "early-exit",
        "Early exit",
        says=[
            f"A token leaves at the first layer where a lens is sure enough of its word. Where 95 % of the words stay those of "
            f"the whole model, that saves {'; '.join(told)}."
        ],
        notable=[f"Where 95 % of the words stay the model's own, stopping early saves {_most(exits, best)}."],
        pictures=[Picture(curve, "Words that stay the model's own, against blocks saved")],
        tables=[Table(
            "early-exit", "Some strictnesses λ: share of blocks saved, and of words that stay",
            ("λ", *(f"{lens_name(lens)}, {what}" for lens in lenses for what in ("saved", "words"))), rows,
            table_csv(exits, ["agreement", "layers_run", "layers_saved"], ["lens", "strictness"]),
        )],
        how=f"{exits.attrs['tokens']:,} tokens of {exits.attrs['documents']} articles that no map was fitted on, windows of "
        f"{exits.attrs['window']}. What is saved is blocks, not time: reading a lens costs a product with the vocabulary.",
        source=SOURCE,
    )  # fmt: skip


def _most(exits: xr.Dataset, lens: str) -> str:
    return f"{100 * float(exits.saved_at_95.sel(lens=lens)):.1f} % of the blocks at most ({lens_name(lens)})"


def _at(exits: xr.Dataset, strictness: float) -> tuple[float, float]:
    here = exits.sel(strictness=strictness, method="nearest")
    return float(here.layers_saved), float(here.agreement)
