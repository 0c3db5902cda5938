"""Rotary settings beside what every theory of the base asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lens.figures.export import table_csv
from lens.figures.report import Picture, Section, Table
from lens.figures.report_plots import wavelength_plot
from lens.figures.rope_bounds import bounds_chart, hypotheses, in_words
from lens.probes.dataset import exact, texts, variable
from lens.probes.rope_bounds import THEORIES, rope_bounds
from lens.probes.rope_minimum import WIDTHS
from lens.probes.rope_practice import RotarySettings, rope_practice, rotary_settings
from lens.probes.rope_problems import rope_problems
from lens.report.work import Work

_CONTEXTS = tuple(2**k for k in range(8, 21))
_QUICK = 2**15  # tokens up to which bases are found in a second where the package's own table does not hold the width
_DRAWN = tuple(name for name in THEORIES if name != "similar_beats_random_safe")


def section(work: Work) -> Section:
    """Every table of the model: its lanes, and every theory with its verdict."""
    settings = rotary_settings(work.model)
    practice = rope_practice(models=settings)
    parts = [_part(one, practice, len(settings) > 1) for one in settings]
    return Section(
        "rotary",
        "Rotary positions",
        says=[sentence for part in parts for sentence in part.says()],
        notable=[part.verdict() for part in parts],
        pictures=[picture for part in parts for picture in part.pictures()],
        tables=[table for part in parts for table in part.tables()],
        how="the model's own frequencies against formulas; nothing was run. Two theories are held against the lanes themselves: "
        "the kernel of relative positions that stays above zero, and the quarter of slow lanes. None of them alone tells the "
        "released models that work from settings that are not offered: what speaks against each stands beside it.",
        source=str(parts[0].setting.attrs["source"]),
    )


@dataclass(frozen=True)
class _Part:
    """One rotary table: that of the model, or of one of its layer types."""

    settings: RotarySettings
    practice: xr.Dataset
    setting: xr.Dataset
    rows: list[dict[str, Any]]
    one_of_several: bool

    @property
    def name(self) -> str:
        return str(self.settings.facts["model"])

    @property
    def lanes(self) -> xr.Dataset:
        """Of the model's own table; those of the bounds are a default table's."""
        return self.practice.sel(model=self.name)

    def verdict(self) -> str:
        """How many theories are met, and by name those that are not."""
        facts = self.setting.attrs
        refused = [self._refusal(row) for row in self.rows if not row["met"]]
        told = f"; {'; '.join(refused)}" if refused else ""
        base = "Base" if facts["base"] == self.settings.facts["base"] else "Effective base"
        place = f"{base} {in_words(facts['base'])} for {facts['context']:,} tokens"
        start = f"{self.name}: " if self.one_of_several else ""
        return f"{start}{place}: {len(self.rows) - len(refused)} of {len(self.rows)} theories of the rotary base are met{told}."

    def _refusal(self, row: dict[str, Any]) -> str:
        told = f"“{row['name']}” asks for {row['bound']} {in_words(row['required'])}"
        base, required = self.setting.attrs["base"], row["required"]
        enough = base >= required if row["bound"] == "at least" else base < required
        return f"{told}, and is not met by the lanes themselves" if enough else told

    def says(self) -> list[str]:
        """Verdict and lanes."""
        lanes, kind = self.lanes, str(self.settings.facts["kind"])
        scaled = "" if kind == "default" else f" Frequencies scaled by {kind}."
        negative = float(lanes.first_negative)
        kernel = (
            "stays above zero over the whole context" if negative != negative else f"falls below zero at {negative:,.0f} tokens"
        )
        return [
            f"{self.verdict()}{scaled}",
            f"{int(lanes.slow_lanes)} of {int(lanes.lanes)} lanes complete no turn within the context, "
            f"{int(lanes.constant_lanes)} keep their cosine at {self.setting.attrs['epsilon']:g} or above all the way; the "
            f"kernel of relative positions {kernel}.",
        ]

    def pictures(self) -> list[Picture]:
        """Wavelengths of the lanes, and the wedge of all theories with released models."""
        width = self.setting.attrs["width"]
        contexts = [one for one in _CONTEXTS if width in WIDTHS or one <= _QUICK]
        lines = rope_bounds(contexts, self.setting.attrs["layers"], width)
        wedge = bounds_chart(lines, self.practice, _DRAWN, self.setting, self.name)["plots"][0]
        waves = wavelength_plot(self.settings.table.wavelength, self.settings.facts["context"])
        return [
            Picture(waves, f"{self.name}: tokens that each lane takes for one turn"),
            Picture(wedge, f"{self.name} among released models, and the base that every theory asks for", self.name),
        ]

    def tables(self) -> list[Table]:
        """Theories with their verdicts, and lanes."""
        shown = [
            [row["title"], f"{row['bound']} {in_words(row['required'])}", "yes" if row["met"] else "no", row["against"][0]]
            for row in self.rows
        ]
        header = ("hypothesis", "asks for a base of", "met", "in practice")
        name = f"theories-{self.name}" if self.one_of_several else "theories"
        return [Table(name, f"{self.name} against every theory", header, shown, self._csv())]

    def _csv(self) -> str:
        """With every sentence that speaks against each."""
        columns = {
            "required": exact(("theory",), np.array([row["required"] for row in self.rows]), "required base"),
            "bound": texts(("theory",), [row["bound"] for row in self.rows], "kind of bound"),
            "met": variable(("theory",), np.array([row["met"] for row in self.rows]), "whether the model meets it"),
            "assumptions": texts(("theory",), [row["assumptions"] for row in self.rows], "what it takes for granted"),
            "against": texts(("theory",), [" ".join(row["against"]) for row in self.rows], "what speaks against it"),
        }
        names = {"theory": texts(("theory",), [row["name"] for row in self.rows], "hypothesis")}
        return table_csv(xr.Dataset(columns, names), list(columns), ["theory"])


def _part(settings: RotarySettings, practice: xr.Dataset, one_of_several: bool) -> _Part:
    facts = settings.facts
    base = float(practice.effective_base.sel(model=facts["model"]))
    setting = rope_bounds(facts["context"], facts["layers"], facts["width"], base)
    problems = rope_problems(setting, practice)
    rows = hypotheses(setting, practice, problems, list(THEORIES), facts["model"])
    return _Part(settings, practice, setting, rows, one_of_several)
