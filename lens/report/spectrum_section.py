"""How many directions the states of each layer fill."""

from __future__ import annotations

from lens.figures.export import table_csv
from lens.figures.report import Picture, Section, Table
from lens.figures.report_plots import leading_plot, rank_plot
from lens.probes.spectrum import SOURCE, spectrum
from lens.report.words import part, thinned
from lens.report.work import Work

_COLUMNS = {
    "effective_rank": "effective rank",
    "participation_ratio": "participation ratio",
    "anisotropy": "first direction's share",
    "top_coordinate": "coordinate of most variance",
    "top_coordinate_share": "its share",
}


def section(work: Work) -> Section:
    """Effective rank, participation ratio and anisotropy by layer, beside those of isotropic states."""
    found = spectrum(work.moments.train)
    ranks = found.effective_rank.to_numpy()
    low, high = int(ranks.argmin()), int(ranks.argmax())
    layers = found.layer.to_numpy()
    width = found.sizes["component"]
    fills = (
        f"Of {width} directions the states fill {ranks[high]:.0f} at layer {layers[high]}, the most, and {ranks[low]:.0f} at "
        f"layer {layers[low]}, the fewest"
    )
    shares = found.anisotropy.to_numpy().astype(float)
    most = int(shares.argmax())
    coordinate, held = int(found.top_coordinate[most]), float(found.top_coordinate_share[most])
    return Section(
        "residual-spectrum",
        "Spectra of the residual stream",
        says=[
            f"{fills} (effective rank of the covariance; as many isotropic states would fill "
            f"{float(found.effective_rank_null[0]):.0f}).",
            f"One direction holds up to {part(shares[most])} of the variance, at layer {layers[most]}; there the coordinate of "
            f"most variance, {coordinate}, holds {part(held)} of it.",
        ],
        notable=[f"{fills}."],
        pictures=[
            Picture(rank_plot(found), "Directions that the states of each layer fill", int(layers[low])),
            Picture(leading_plot(found), "Variance in the first direction, and in one coordinate", int(layers[most])),
        ],
        tables=[Table(
            "residual-spectrum", f"{len(thinned(len(layers)))} of the {len(layers)} layers", ("layer", *_COLUMNS.values()),
            [[int(layers[k]), *(found[name][k].item() for name in _COLUMNS)] for k in thinned(len(layers))],
            table_csv(found, [str(name) for name in found.data_vars if found[name].dims == ("layer",)], ["layer"]),
        )],
        how=f"covariance of {found.attrs['tokens']:,} tokens of {work.corpus.name}; first tokens and massive states left out.",
        source=SOURCE,
    )  # fmt: skip
