"""The page of a report without a model: what a table loses first, how numbers look, and what both themes are made of."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr

from lens.figures.chart import heat_map, lines, rule
from lens.figures.inline_svg import inline_svg, theme_styles
from lens.figures.page import widget_source
from lens.figures.report import Report, Section, Table, report_page
from lens.figures.report_plots import heads_plot, kl_plot, wavelength_plot
from lens.figures.static_chart import contrast, luminance


def page(*tables: Table, **section) -> str:
    return report_page(Report("m", "", {}, [Section("one", "One", tables=tables, **section)]), most=20_000)


def csv_of(rows: int) -> str:
    return "a\n" + "12345\n" * rows


def test_largest_tables_lose_their_files_until_the_page_is_small_enough():
    tables = [Table(f"t{rows}", f"{rows} rows", ("a",), [[1]], csv_of(rows)) for rows in (10, 2000, 3000, 20)]
    made = page(*tables)
    assert len(made.encode()) <= 20_000
    assert re.findall(r'download="m-(t\d+).csv"', made) == ["t10", "t20"]
    assert made.count("is too large for this page") == 2
    assert ">10</a>" not in made
    assert "</a>, 10 rows" in made


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        ([0.12345, -0.5], ["0.123", "−0.500"]),
        ([91.586, 2.144], ["91.59", "2.14"]),
        ([1234.56, 0.1], ["1,235", "0"]),
        ([12.0, None, float("nan")], ["12.00", "–", "–"]),
        ([1500, 2], ["1,500", "2"]),
    ],
)
def test_numbers_of_a_column_have_one_form_and_stand_on_the_right(column, shown):
    made = page(Table("t", "", ("a",), [[value] for value in column]))
    assert re.findall(r"<td class=number>([^<]*)</td>", made) == shown


def test_words_are_escaped_and_visible_wherever_they_stand():
    hostile = '<b>"\u202e&'
    made = page(Table(hostile, hostile, (hostile,), [[hostile]]), says=[hostile], notable=[hostile], how=hostile, source=hostile)
    shown = "&lt;b&gt;&quot;&lt;U+202E&gt;&amp;"
    assert made.count(shown) == 7
    assert "\u202e" not in made
    assert "<b>" not in made


def test_only_numbers_of_papers_become_links():
    made = page(source="arXiv 2405.12250, see http://example.org and 1234.5")
    assert re.findall(r'href="([^"]*)"', made) == ["#one", "https://arxiv.org/abs/2405.12250"]


def _colours() -> tuple[dict[str, str], dict[str, str]]:
    styles = theme_styles() + widget_source("report.css")
    light, dark = {}, {}
    for block in re.findall(r"(@media \(prefers-color-scheme: dark\) \{ )?:root \{([^}]*)\}", styles):
        (dark if block[0] else light).update(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", block[1]))
    return light, dark


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_and_lines_stand_out_from_the_page(theme: int):
    colours = _colours()[theme]

    def against(name: str, page: str) -> float:
        words, behind = (np.array([int(colours[one][k : k + 2], 16) / 255 for k in (1, 3, 5)]) for one in (name, page))
        return contrast(words, luminance(behind))

    for name in ("ink", "soft", "strong", "accent", "link"):
        assert against(name, "paper") >= 4.5
    for name in (name for name in colours if re.fullmatch("c[0-9a-f]{6}", name)):
        assert against(name, "paper") >= 3
    assert against("ink", "card") >= 4.5
    assert _colours()[0].keys() == _colours()[1].keys()


def test_labels_that_look_like_styles_stay_labels():
    plot = lines("a", [0, 1], {'style="fill: #0072b2" id="x" <b>': [0, 1], "b": [1, 0]}, x_axis="#555555", y_axis="url(#x)")
    svg = ElementTree.fromstring(inline_svg(plot, 1, '"<b>'))
    words = ["".join(part.itertext()) for part in svg.iter() if part.tag.endswith("text")]
    assert {'style="fill: #0072b2" id="x" <b>', "#555555", "url(#x)"} <= set(words)
    assert svg.attrib["aria-label"] == '"<b>'


def test_cells_of_a_map_are_one_picture_and_keep_their_colours():
    cells = np.linspace(0, 1, 6400).reshape(80, 80)
    plot = heat_map("m", np.arange(80), np.arange(80), cells, x_axis="head", y_axis="block", value_axis="share")
    svg = inline_svg(plot, 1, "map")
    assert len(svg) < 100_000
    assert svg.count('href="data:image/png;base64,') == 2  # the cells and the scale beside them
    small = heat_map("m", [0, 1], [0, 1], [[0.0, 1.0], [0.5, -3.0]], x_axis="x", y_axis="y", value_axis="v")
    small["value"]["range"] = [0.0, 1.0]
    assert "var(--ink)" not in "".join(re.findall(r'<use[^>]*style="([^"]*)"', inline_svg(small, 2, "map")))


def test_rules_and_series_follow_the_theme():
    plot = lines("a", [0, 1], {"plain lens": [0, 1], "noise floor": [1, 0]}, x_axis="x", y_axis="y", rules=[rule(0.5, "half")])
    svg = inline_svg(plot, 3, "lines")
    assert "stroke: var(--c0072b2)" in svg
    assert "stroke: var(--ink)" in svg
    assert not re.search(r'style="[^"]*#[0-9a-f]{6}', svg)


def test_plots_of_a_report_hold_what_they_are_given():
    waves = wavelength_plot([6.28, 100.0, np.inf], 64)
    assert waves["series"][0]["values"] == [6.28, 100.0, None]
    assert waves["rules"][0]["value"] == 64
    heads = xr.Dataset(
        {"first_token": (("head", "block"), np.array([[0.1, 0.2], [0.3, 0.4]]))}, {"block": [3, 5], "head": [0, 1]}
    )
    assert heads_plot(heads, "first_token", "share", (0.0, 1.0))["values"] == [[0.1, 0.3], [0.2, 0.4]]
    readings = xr.Dataset(
        {name: (("lens", "layer"), np.array([[3.0, 2.0, 0.0]]) * factor - lower)
         for name, factor, lower in (("kl_to_final", 1, 0), ("kl_low", 1, 2.5), ("kl_high", 2, 0))},
        {"lens": ["plain"], "layer": [0, 1, 2]},
    )  # fmt: skip
    (curve,) = kl_plot(readings)["series"]
    assert (curve["values"], curve["low"], curve["high"]) == ([3.0, 2.0], [0.5, None], [6.0, None])
