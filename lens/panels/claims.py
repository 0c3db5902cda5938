"""The ledger of claims to search: what was said, what was measured here, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import numpy as np
import traitlets
import xarray as xr

from lens.base.errors import InputError
from lens.figures.claims import (
    MARKS,
    SCRIPTS,
    STYLES,
    claims_list,
    claims_spec,
    export_claims,
    in_words,
    verdict_counts,
)
from lens.figures.page import widget_source
from lens.panels.fitted import ChartPanel
from lens.panels.panel import Job
from lens.panels.token_grid import PANEL_CSS
from lens.probes.claims import claims, claims_by_paper, select_claims

_CHOICES = ("search", "paper", "notebook")


class ClaimsTable(anywidget.AnyWidget):
    """The ledger as a list that scrolls inside; see `lens/figures/claims.js`.

    `spec` comes from `lens.figures.claims.claims_spec`; `selected` holds `claims`, the places of those that are shown; `busy`
    dims the list.
    """

    _esm = widget_source(*SCRIPTS)
    _css = widget_source(*STYLES) + PANEL_CSS

    spec = traitlets.Dict().tag(sync=True)
    selected = traitlets.Dict().tag(sync=True)
    busy = traitlets.Dict().tag(sync=True)

    def __repr__(self) -> str:
        return f"ClaimsTable({len(self.selected.get('claims', []))} of {len(self.spec.get('rows', []))} claims)"


@dataclass(frozen=True)
class _Result:
    """The ledger, its rows as HTML, and which of them the search, the paper and the notebook leave."""

    every: xr.Dataset
    spec: Mapping[str, Any]
    found: xr.Dataset

    def shown(self, verdict: str) -> xr.Dataset:
        return select_claims(self.found, verdict=verdict)


class Claims(ChartPanel):
    """Every claim that the notebooks test, to search and to filter.

    Args:
        search: words that all occur in a claim, its source, figures or section.
        verdict: `holds`, `holds in part`, `fails`, `open`, `one run`, `untested`; empty for all.
        paper: an arXiv number, or who and when, or `ours`; empty for all.
        notebook: a name; empty for all.

    `set(verdict="fails")` does the same from a cell, `summary()` gives what is shown as plain data, `claims` as a Dataset. Links
    open the other notebooks where the panel stands in a notebook beside them.
    """

    COMPUTED = _CHOICES
    VIEW = ("verdict",)
    PICTURE = ClaimsTable

    def __init__(self, *, search: str = "", verdict: str = "", paper: str = "", notebook: str = ""):
        self._every = claims().assign_coords(place=("claim", np.arange(claims().sizes["claim"])))
        self._rows = claims_spec(self._every)
        narrow = widgets.Layout(width="auto", max_width="24em")
        papers = claims_by_paper(self._every)
        named = [(str(name), str(paper)) for name, paper in zip(papers.name.to_numpy(), papers.paper.to_numpy(), strict=True)]
        notebooks = [(str(name), str(name)) for name in dict.fromkeys(self._every.notebook.to_numpy())]
        top = {
            "search": widgets.Text(search, placeholder="search in claims", layout={"flex": "1 1 14em", "width": "auto"}),
            "paper": widgets.Dropdown(options=[("all papers", ""), *named], value="", layout=narrow, tooltip="paper"),
            "notebook": widgets.Dropdown(
                options=[("all notebooks", ""), *notebooks], value="", layout=narrow, tooltip="notebook"
            ),
        }
        chips = widgets.ToggleButtons(options=[("all", "")], value="", style={"button_width": "auto"}, layout=narrow)
        chips.layout.max_width = "100%"
        start = {"search": search, "paper": paper, "notebook": notebook}
        super().__init__(start, {"verdict": verdict}, top, {"verdict": chips})
        self.children = (*self.children[:-2], self._says, self.chart)
        self._open({"verdict": verdict})

    def __repr__(self) -> str:
        chosen = {**{name: self._settings[name] for name in _CHOICES}, "verdict": self._view["verdict"]}
        return f"Claims({', '.join(f'{name}={value!r}' for name, value in chosen.items() if value)})"

    # -- for cells --------------------------------------------------------------------------------

    @property
    def claims(self) -> xr.Dataset:
        """The claims that are shown, from `lens.claims`."""
        return self._shown().shown(self._view["verdict"]).drop_vars("place")

    def export(self, path: str | Path) -> Path:
        """Write the claims that are shown as `.csv`, `.nc`, or a page, `.html`.

        Raises:
            InputError: another suffix.
        """
        return export_claims(self.claims, path, self._facts(self._shown(), self._view)["says"])

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live panel, and a list for places that show notebooks without a kernel."""
        bundle: Any = super(ChartPanel, self)._repr_mimebundle_(**kwargs)
        if bundle is not None and self._result is not None:
            shown = self._result.shown(self._view["verdict"])
            bundle["text/html"] = claims_list(shown, in_words(shown, self._every))
        return bundle

    # -- steps ------------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        for name in _CHOICES:
            if not isinstance(job.settings[name], str):
                raise InputError(f"The {name} is {job.settings[name]!r}", "a text", f"{name}=''")
        return _Result(self._every, self._rows, select_claims(self._every, **{name: job.settings[name] for name in _CHOICES}))

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        result.shown(view["verdict"])
        return dict(view)

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        return dict(result.spec)

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        shown = result.shown(view["verdict"])
        return {
            "claims": shown.sizes["claim"],
            "of": result.every.sizes["claim"],
            "verdicts": verdict_counts(shown),
            "papers": len({paper for named in shown.paper.to_numpy() for paper in named.split("; ")} - {"ours"}),
            "notebooks": list(dict.fromkeys(map(str, shown.notebook.to_numpy()))),
            "says": in_words(shown, result.every),
        }

    def _show(self, result: _Result, seconds: float) -> None:
        self._result = result  # and no seconds, of which there are none

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        return {"claims": self._result.shown(view["verdict"]).place.to_numpy().tolist()}

    def _show_view(self, view: Mapping[str, Any]) -> None:
        """Each chip says how many claims the other choices leave it."""
        counts = verdict_counts(self._result.found)
        chips, words = self._controls["verdict"], [word for word in MARKS if word in counts or word == view["verdict"]]
        options = [(f"all {self._result.found.sizes['claim']}", "")]
        options += [(f"{MARKS[word]} {word} {counts.get(word, 0)}", word) for word in words]
        if list(chips.options) != options:
            chips.options = options
        super()._show_view(view)
