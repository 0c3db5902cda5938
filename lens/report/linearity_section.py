"""How much of each block is one matrix."""

from __future__ import annotations

from lens.figures.export import table_csv
from lens.figures.layer_linearity import linearity_chart
from lens.figures.report import Picture, Section, Table
from lens.probes.linearity import SOURCE
from lens.report.words import part, percent, thinned
from lens.report.work import Work

_COLUMNS = {
    "score": "R², held out",
    "score_update": "R² of the update, held out",
    "score_in_sample": "R², in sample",
    "score_update_in_sample": "R² of the update, in sample",
    "update_norm": "size of the update over that of the output",
}


def section(work: Work) -> Section:
    """Held-out scores, as published beside them, and the noise floor."""
    scores, floor = work.linearity, work.floor
    worst = int(scores.block[int(scores.score_update.to_numpy().argmin())])
    ladder = work.steps.isel(pair=(work.steps.from_layer == worst).to_numpy())
    median = {name: float(scores[name].median()) for name in (*_COLUMNS, "update_energy")}
    lowest = float(scores.score_update.min())
    summary = (
        f"One matrix explains {percent(median['score'])} of what leaves a block, and {percent(median['score_update'])} of what "
        "the block itself adds (medians over blocks, on text that was not fitted)."
    )
    least = f"Block {worst} is the least linear: a matrix explains {percent(lowest)} of what it adds."
    rows = [[int(scores.block[k]), *(float(scores[name][k]) for name in _COLUMNS)] for k in thinned(scores.sizes["block"])]
    held_out, steps = linearity_chart(scores, floor, ladder)["plots"]
    in_sample, _ = linearity_chart(scores, floor, ladder, "in sample")["plots"]
    return Section(
        "linearity",
        "Linearity of the blocks",
        says=[
            f"{summary} The state as it came, shifted to the right mean, already explains "
            f"{percent(1 - median['update_energy'])}.",
            f"Scored as published, on the very tokens that were fitted, the two read {percent(median['score_in_sample'])} and "
            f"{percent(median['score_update_in_sample'])}. Maps fitted on shuffled tokens, where there is nothing to find, "
            f"explain {percent(float(floor.shuffled_r2.max()))} held out and "
            f"{part(float(floor.shuffled_r2_in_sample.max()))} in sample.",
            least,
        ],
        notable=[summary, least],
        pictures=[
            Picture(held_out, "Every block, on text that was not fitted", worst),
            Picture(in_sample, "The same on the fitted tokens, as published", worst),
            Picture(steps, f"Ever freer maps in the place of block {worst}"),
        ],
        tables=[Table("linearity", f"{len(rows)} of the {scores.sizes['block']} blocks", ("block", *_COLUMNS.values()), rows,
                      table_csv(scores, [str(name) for name in scores.data_vars], ["block"]))],
        how=f"{work.said()}; ridge {scores.attrs['ridge']:g} of the mean variance.",
        source=SOURCE,
    )  # fmt: skip
