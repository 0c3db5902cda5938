"""Writing a result to a file whose suffix says how."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from lens.base.errors import InputError
from lens.base.files import atomic_file
from lens.base.text import csv_safe, visible

SUFFIXES = (".html", ".csv", ".png", ".svg", ".pdf", ".nc")


def require_suffix(path: Path | str) -> Path:
    """Check the suffix before anything is computed.

    Raises:
        InputError: a suffix that is not in `SUFFIXES`.
    """
    found = Path(path).suffix
    if found not in SUFFIXES:
        raise InputError(f"The file name {Path(path).name!r} ends in {found!r}", f"one of {', '.join(SUFFIXES)}", "lens.html")
    return Path(path)


def export_logit_lens(
    dataset: xr.Dataset,
    path: Path | str,
    *,
    colour: str = "probability",
    stride: int = 1,
    selected: tuple[int, int] | None = None,
) -> Path:
    """Write a logit-lens Dataset as a page, a table, a picture or netCDF; atomically.

    Args:
        dataset: from `lens.logit_lens`.
        path: where to; the suffix chooses among `.html`, `.csv`, `.png`, `.svg`, `.pdf` and `.nc`.
        colour, stride, selected: what a page or picture shows.

    Raises:
        InputError: another suffix.
    """
    target = require_suffix(path)
    with atomic_file(target) as temporary:
        if target.suffix == ".html":
            from lens.figures.page import logit_lens_page

            temporary.write_text(logit_lens_page(dataset, colour, stride, selected), encoding="utf-8")
        elif target.suffix == ".csv":
            temporary.write_text(logit_lens_csv(dataset), encoding="utf-8")
        elif target.suffix == ".nc":
            dataset.to_netcdf(temporary, engine="h5netcdf")
        else:
            from lens.figures.static import logit_lens_figure

            logit_lens_figure(dataset, colour, stride).savefig(temporary)
    return target


def export_table(dataset: xr.Dataset, path: Path | str, variables: Sequence[str], dims: Sequence[str]) -> Path:
    """Write some variables of a Dataset as `.csv`, one line for each place, or all of it as `.nc`; atomically.

    Args:
        dataset: from a probe; its texts are guarded against spreadsheets.
        path: where to.
        variables: columns of the table.
        dims: its rows, the slowest first.

    Raises:
        InputError: another suffix.
    """
    target = Path(path)
    if target.suffix not in (".csv", ".nc"):
        raise InputError(f"The file name {target.name!r} ends in {target.suffix!r}", "one of .csv, .nc", "table.csv")
    with atomic_file(target) as temporary:
        if target.suffix == ".nc":
            dataset.to_netcdf(temporary, engine="h5netcdf")
        else:
            temporary.write_text(table_csv(dataset, variables, dims), encoding="utf-8")
    return target


def table_csv(dataset: xr.Dataset, variables: Sequence[str], dims: Sequence[str]) -> str:
    """Some variables of a Dataset as CSV, one line for each place; every digit, texts guarded against spreadsheets.

    Args:
        dataset: from a probe.
        variables: columns of the table, after its coordinates.
        dims: its rows, the slowest first.
    """
    table = dataset[list(variables)].to_dataframe(dim_order=list(dims)).reset_index()
    for column in (name for name in table.columns if table[name].dtype.kind == "O"):
        table[column] = [csv_safe(str(text)) for text in table[column]]
    return table.to_csv(index=False, float_format="%.17g")


def logit_lens_csv(dataset: xr.Dataset) -> str:
    """One line per layer, position and rank; token texts made visible and guarded against spreadsheets."""
    table = dataset[["token_id", "token", "logprob"]].to_dataframe(dim_order=["position", "layer", "rank"]).reset_index()
    cells = dataset[["entropy", "kl_to_final", "next_rank", "next_surprisal"]].to_dataframe().reset_index()
    table = table.merge(cells.drop(columns=["input_id", "input_token"]), on=["layer", "position"])
    for column in ("token", "input_token"):
        table[column] = [csv_safe(visible(text)) for text in table[column]]
    return table.to_csv(index=False, float_format="%.6g")
