"""The wedge: which base every theory asks for at which context, with released models as dots, and what speaks against each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens.base.text import html_safe
from lens.figures.chart import axis, chart, scatter
from lens.figures.table import text_table

WEDGE = "model"  # name of the plot, whose selection is a dot's label
CONTEXTS = (200.0, 2e6)
BASES = (100.0, 1e11)
_USED, _BEYOND = "released models", "not offered for this context"
_TABLED = ("dc_stability", "depth", "precision_wall")
_ROOM = (0.6, 0.5)  # decades of context and base that a name takes


def bounds_chart(
    lines: xr.Dataset, practice: xr.Dataset, theories: Sequence[str], setting: xr.Dataset, model: str | None = None
) -> dict[str, Any]:
    """Context against base on logarithmic axes, one line for each theory.

    Args:
        lines: from `rope_bounds`, of several contexts.
        practice: from `rope_practice`; models stand at their effective base; one without (all but a lane stopped) is left out.
        theories: variables of `lines` to draw.
        setting: from `rope_bounds`, of the one context and base that the controls stand at.
        model: one whose name is always shown.
    """
    contexts = lines.context.to_numpy()
    curves = {lines[name].attrs["short_name"]: (contexts, lines[name].to_numpy()) for name in theories}
    groups = np.where(practice.supported.to_numpy(), _USED, _BEYOND)
    columns = (practice.context.to_numpy(), practice.effective_base.to_numpy(), practice.model.to_numpy(), groups)
    dots = [
        {"x": x, "y": y, "label": label, "group": group} for x, y, label, group in zip(*columns, strict=True) if np.isfinite(y)
    ]
    here = {"x": setting.attrs["context"], "y": setting.attrs["base"], "label": "the controls"}
    plot = scatter(
        WEDGE,
        dots,
        curves,
        x_axis=axis("context", "tokens", scale="log", range=CONTEXTS),
        y_axis=axis("base", scale="log", range=BASES),
        here=None if model else here,
        named=_apart(dots, model),
    )
    return chart([plot])


def _apart(dots: Sequence[dict[str, Any]], model: str | None) -> list[str]:
    """Names that do not lie over each other, that of the model first."""
    found: dict[str, np.ndarray] = {}
    for dot in sorted(dots, key=lambda dot: dot["label"] != model):
        place = np.log10([dot["x"], dot["y"]])
        if not any((np.abs(place - other) < _ROOM).all() for other in found.values()):
            found[dot["label"]] = place
    return list(found)


def hypotheses(
    setting: xr.Dataset, practice: xr.Dataset, problems: xr.Dataset, theories: Sequence[str], model: str | None = None
) -> list[dict[str, Any]]:
    """What each theory says of a setting, as plain data.

    Args:
        setting: from `rope_bounds`, with a base.
        practice: from `rope_practice`.
        problems: from `rope_problems`.
        theories: variables to list.
        model: whose own lanes decide instead of the default ones at that base.

    Returns:
        For each theory its `name`, `title`, `bound` (`at least`, `less than`), `required` base, `met`, `assumptions`, `source`
        and what speaks `against` it, as sentences.
    """
    sentences = list(zip(problems.theory.to_numpy(), problems.sentence.to_numpy(), strict=True))
    found = []
    for name in theories:
        facts = setting[name].attrs
        met = facts["met"] == "yes" if model is None else bool(practice.met.sel(model=model, theory=name))
        found.append({
            "name": facts["short_name"], "title": facts["theory"], "bound": facts["bound"], "required": float(setting[name]),
            "met": met, "assumptions": facts["assumptions"], "source": facts["source"],
            "against": [str(sentence) for theory, sentence in sentences if theory == name],
        })  # fmt: skip
    return found


def hypotheses_html(rows: Sequence[dict[str, Any]]) -> str:
    """A table of them; each opens to what it assumes and what speaks against its mechanism."""
    titles = ("hypothesis", "asks for a base of", "met here", "in practice")
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f'<table class="lens-hypotheses"><thead><tr>{head}</tr></thead><tbody>{"".join(map(_line, rows))}</tbody></table>'


def _line(row: dict[str, Any]) -> str:
    practice, *mechanism = [html_safe(sentence) for sentence in row["against"]]
    name, what = (html_safe(part) for part in row["title"].split(": ", 1))
    more = f"<p>Assumes: {html_safe(row['assumptions'])}. Source: {html_safe(row['source'])}.</p>"
    more += "".join(f"<p>{sentence}</p>" for sentence in mechanism)
    cells = (
        f"<details><summary><b>{name}</b>: {what}</summary>{more}</details>",
        f"{row['bound']} {in_words(row['required'])}",
        "yes" if row["met"] else "no",
        practice,
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def practice_table(practice: xr.Dataset, theories: Sequence[str] = _TABLED) -> str:
    """The released models against the theories as plain text, one line each.

    Args:
        practice: from `rope_practice`.
        theories: of which the required base is shown, with a star where the model has less (or, for the wall, not less).
    """
    rows = []
    for number, model in enumerate(practice.model.to_numpy()):
        row = practice.isel(model=number)
        asked = [
            f"{in_words(float(row.required.sel(theory=name)))}{'' if row.met.sel(theory=name) else ' *'}" for name in theories
        ]
        negative = float(row.first_negative)
        slow = f"{int(row.slow_lanes)}/{int(row.lanes)}"
        rows.append([
            str(model), in_words(float(row.base)), str(row.kind.item()), f"{int(row.context):,}", *asked, slow,
            "none" if np.isnan(negative) else f"{negative:,.0f}",
        ])  # fmt: skip
    titles = [name.replace("_", " ") for name in theories]
    return text_table(["model", "base", "kind", "context", *titles, "slow lanes", "kernel below 0 from"], rows)


def theory_table(practice: xr.Dataset) -> str:
    """How every theory fares with the released models, as plain text.

    Args:
        practice: from `rope_practice`.
    """
    used = int(practice.supported.sum())
    columns = (practice.hypothesis, practice.used_though_not_met, practice.met_though_unused)
    header = ("hypothesis", f"not met by, of {used} in use", f"met by, of {practice.sizes['model'] - used} beyond their context")
    return text_table(header, list(zip(*(column.to_numpy() for column in columns), strict=True)))


def in_words(base: float) -> str:
    """A base with at most three digits beyond a million: `12,898`, `2.32 million`."""
    if base < 999_999.5:
        return f"{base:,.0f}"
    for size, name in ((1e6, "million"), (1e9, "billion"), (1e12, "trillion")):
        if base < 999.5 * size:
            return f"{base / size:.3g} {name}"
    return f"{base:.2e}"
