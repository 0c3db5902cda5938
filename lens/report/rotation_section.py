"""By how many degrees each block turns the states."""

from __future__ import annotations

from lens.figures.export import table_csv
from lens.figures.report import Picture, Section, Table
from lens.figures.rotation_drift import paths, rotation_chart
from lens.probes.procrustes import SOURCE
from lens.report.words import thinned
from lens.report.work import SUBSPACE, Work

_NAME = str(SUBSPACE)
_COLUMNS = ("energy_angle", "energy_angle_noise", "similarity_held_out", "scale")


def section(work: Work) -> Section:
    """Angles of every block, and from every layer to the last one."""
    steps, direct = work.steps, work.direct
    here = steps.sel(subspace=_NAME)
    angles, noise = here.energy_angle.to_numpy(), here.energy_angle_noise.to_numpy()
    most = int(angles.argmax())
    _, added, straight = paths(steps, direct, _NAME)
    directions = int(here["size"].max())
    pair = steps.isel(pair=[most])
    caution = "" if angles[most] >= 2 * noise[most] else ", hardly more than two fits on different texts differ by"
    largest = f"Block {int(steps.from_layer[most])} turns the states the most, by {angles[most]:.1f}°{caution}."
    median, floor = (float(here[name].median()) for name in ("energy_angle", "energy_angle_noise"))
    charts = {name: rotation_chart(steps, direct, pair, _NAME, name)["plots"] for name in ("blocks", "depth", "shares")}
    rows = [[int(here.from_layer[k]), *(float(here[name][k]) for name in _COLUMNS)] for k in thinned(steps.sizes["pair"])]
    return Section(
        "rotation",
        "Rotation from layer to layer",
        says=[
            f"Half of the blocks turn the states by more than {median:.1f}° (by energy, in the {directions} directions of most "
            f"variance; two fits on different texts differ by {floor:.1f}°). {largest}",
            f"From the first layer to the last the turns add up to {added[0]:.0f}°, and lead {straight[0]:.0f}° away.",
        ],
        notable=[f"{largest} From the first layer to the last the states end {straight[0]:.0f}° from where they began."],
        pictures=[
            Picture(charts["blocks"][0], "Energy angle of every block's rotation, and what two fits differ by", most),
            Picture(charts["depth"][0], "Angles to the last layer: block by block, and at once"),
            Picture(charts["shares"][0], "What ever freer maps explain of each block's output", most),
            Picture(charts["blocks"][1], f"All angles of block {int(steps.from_layer[most])}'s rotation"),
        ],
        tables=[Table(
            "rotation", f"{len(rows)} of the {steps.sizes['pair']} blocks",
            ("block", "energy angle (degrees)", "of two fits (degrees)", "similarity, held out", "scale"), rows,
            _csv(work),
        )],
        how=f"orthogonal Procrustes maps {work.said()}.",
        source=SOURCE,
    )  # fmt: skip


def _csv(work: Work) -> str:
    table = work.steps.sel(subspace=_NAME, drop=True)
    return table_csv(table, [name for name in map(str, table.data_vars) if table[name].dims == ("pair",)], ["pair"])
