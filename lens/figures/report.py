"""One page about one model: sections of sentences, pictures and tables, with nothing in it that is fetched or run."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lens.base.text import html_safe, visible
from lens.figures.chart import Plot
from lens.figures.inline_svg import inline_svg, theme_styles
from lens.figures.page import widget_source

MOST_BYTES = 5_000_000
"""Of a page. Where tables would make it larger, the longest give up their files."""
_PAPER = re.compile(r"\b\d{4}\.\d{4,5}\b")
# A page that is allowed nothing but its own styles and pictures cannot be made to fetch or run anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>
{styles}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="soft">{subtitle}</p>
<dl>{facts}</dl>
</header>
{notable}
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main>
{sections}
</main>
<footer class="soft">{footer}</footer>
</body>
</html>
"""


@dataclass(frozen=True)
class Picture:
    """A plot of `lens.figures.chart`, what is marked in it, and the words under it."""

    plot: Plot
    caption: str
    selected: Any = None


@dataclass(frozen=True)
class Table:
    """What is shown of a table, and the whole of it as a file.

    Attributes:
        name: of the file, without its suffix.
        caption: what the rows are.
        header: one title per column.
        rows: cells; None and NaN show as a dash.
        csv: the file's content, "" for none.
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    csv: str = ""


@dataclass(frozen=True)
class Section:
    """One question put to the model.

    Attributes:
        anchor: its name in links.
        title: heading.
        says: sentences, each a paragraph.
        notable: what of it belongs to the top of the page; sentences that stand alone.
        pictures, tables: in the order in which they are shown.
        how: what was measured on what.
        source: papers; numbers of arXiv become links.
        missing: why there is nothing, "" where there is.
    """

    anchor: str
    title: str
    says: Sequence[str] = ()
    notable: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    how: str = ""
    source: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Report:
    """A page before it is text.

    Attributes:
        title, subtitle: at the top.
        facts: what the page was made of and with, by name.
        sections: in their order.
    """

    title: str
    subtitle: str
    facts: Mapping[str, str]
    sections: Sequence[Section] = field(default_factory=tuple)


def report_page(report: Report, most: int = MOST_BYTES) -> str:
    """The page as HTML. Every text is escaped, no address but those of papers is in it.

    Args:
        report: what it says.
        most: bytes that the page may have; the largest tables lose their files until it has no more.
    """
    page = _page(report)
    while len(page.encode()) > most and any(table.csv for section in report.sections for table in section.tables):
        report = _without_largest(report)
        page = _page(report)
    return page


def _without_largest(report: Report) -> Report:
    size = max(len(table.csv) for section in report.sections for table in section.tables)

    def lighter(table: Table) -> Table:
        if len(table.csv) < size:
            return table
        return replace(
            table, csv="", caption=f"{table.caption} (the whole table, {size / 1e6:.1f} MB, is too large for this page)"
        )

    sections = [replace(section, tables=tuple(map(lighter, section.tables))) for section in report.sections]
    return replace(report, sections=sections)


def _page(report: Report) -> str:
    numbered = iter(range(1, 1_000))
    notable = [sentence for section in report.sections for sentence in section.notable]
    listed = "".join(f"<li>{_text(sentence)}</li>" for sentence in notable)
    links = "".join(f'<li><a href="#{section.anchor}">{_text(section.title)}</a></li>' for section in report.sections)
    return _PAGE.format(
        policy=_POLICY,
        title=_text(report.title),
        subtitle=_text(report.subtitle),
        styles=theme_styles() + widget_source("report.css"),
        facts="".join(f"<dt>{_text(name)}</dt><dd>{_text(fact)}</dd>" for name, fact in report.facts.items()),
        notable=f'<section class="notable"><h2>What stands out</h2><ul>{listed}</ul></section>' if notable else "",
        contents=links,
        sections="\n".join(_section(section, report.title, numbered) for section in report.sections),
        footer="Every number and sentence on this page was computed from the model; none was typed.",
    )


def _section(section: Section, title: str, numbered: Any) -> str:
    parts = [f'<section id="{section.anchor}">', f"<h2>{_text(section.title)}</h2>"]
    if section.missing:
        parts.append(f'<p class="missing">{_text(section.missing)}</p>')
    parts += [f"<p>{_text(sentence)}</p>" for sentence in section.says]
    if section.pictures:
        drawn = "".join(_picture(picture, next(numbered)) for picture in section.pictures)
        parts.append(f'<div class="pictures">{drawn}</div>')
    parts += [_table(table, title) for table in section.tables]
    if section.how:
        parts.append(f'<p class="how">How: {_text(section.how)}</p>')
    if section.source:
        parts.append(f'<p class="how">Source: {_linked(section.source)}</p>')
    return "\n".join([*parts, "</section>"])


def _picture(picture: Picture, number: int) -> str:
    drawn = inline_svg(picture.plot, number, visible(picture.caption), picture.selected)
    return f"<figure>{drawn}<figcaption>{_text(picture.caption)}</figcaption></figure>"


def _table(table: Table, title: str) -> str:
    columns = list(zip(*table.rows, strict=True))
    numeric = [all(map(_is_number, column)) for column in columns]
    digits = [_digits(column) for column in columns]

    def line(cells: Sequence[str], tag: str) -> str:
        made = (f"<{tag}{' class=number' if right else ''}>{cell}</{tag}>" for cell, right in zip(cells, numeric, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    head = line([_text(name) for name in table.header], "th")
    body = "".join(line([_cell(*cell) for cell in zip(row, digits, strict=True)], "td") for row in table.rows)
    caption = f"<caption>{_text(table.caption)}</caption>"
    shown = f'<div class="scroll"><table>{caption}<thead>{head}</thead><tbody>{body}</tbody></table></div>'
    return f"{shown}{_file(table, title)}"


def _file(table: Table, title: str) -> str:
    """A link that holds its file."""
    if not table.csv:
        return ""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{title}-{table.name}.csv").lower().lstrip(".-")
    held = base64.b64encode(table.csv.encode()).decode("ascii")
    link = f'<a download="{name}" href="data:text/csv;charset=utf-8;base64,{held}">Whole table, CSV</a>'
    return f'<p class="soft">{link}, {table.csv.count(chr(10)) - 1:,} rows</p>'


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float, np.number)) and not isinstance(value, bool))


def _digits(column: Sequence[Any]) -> int:
    """Decimals of a column's floats, so that the largest has about four figures."""
    known = [abs(float(value)) for value in column if isinstance(value, (float, np.floating)) and np.isfinite(value)]
    return max(0, 3 - len(str(int(max(known, default=0)))) + 1) if max(known, default=0) >= 1 else 3


def _cell(value: Any, digits: int) -> str:
    if value is None or (isinstance(value, (float, np.floating)) and not np.isfinite(value)):
        return "–"
    if isinstance(value, (float, np.floating)):
        return f"{float(value):,.{digits}f}".replace("-", "−")
    return f"{value:,}" if _is_number(value) else _text(str(value))


def _linked(source: str) -> str:
    def link(found: re.Match[str]) -> str:
        return f'<a href="https://arxiv.org/abs/{found[0]}" rel="noreferrer">{found[0]}</a>'

    return _PAPER.sub(link, _text(source))


def _text(text: str) -> str:
    """Names of models and words of texts among it: nothing is hidden, reordered or read as markup."""
    return html_safe(visible(text)).replace(" %", "\u00a0%")
