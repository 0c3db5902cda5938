"""The ledger of claims as text, as Markdown for the README, and as rows of a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.files import atomic_file
from lens.base.text import html_safe
from lens.figures.chart import PARTS
from lens.figures.export import export_table
from lens.figures.page import PAGE, widget_source
from lens.figures.verdicts import MARKS, WORDS, here, interval_picture, linked, made_of, needed

SCRIPTS = (*PARTS, "claims.js")
STYLES = ("theme.css", "claims.css")
COLUMNS = ("claim", "published", "here", "verdict", "where")
OPEN = 8  # claims of a list without a kernel that are not folded away
_PHRASES = {
    "holds": ("holds", "hold"),
    "holds in part": ("holds in part", "hold in part"),
    "fails": ("fails", "fail"),
    "open": ("is open", "are open"),
    "one run": ("rests on one run", "rest on one run"),
    "untested": ("is untested", "are untested"),
}
_PLAIN_COMMAND = "pytest --nbval notebooks/{}.ipynb"


def rows(claims: xr.Dataset) -> list[dict[str, Any]]:
    """Claims one by one, as `lens.figures.verdicts` shows them: names that a claim does not fill are left out."""
    names = ["claim", *map(str, claims.data_vars)]
    every = zip(*(claims[name].to_numpy().tolist() for name in names), strict=True)
    return [_filled(dict(zip(names, values, strict=True))) for values in every]


def _filled(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in row.items() if value != "" and not (isinstance(value, float) and np.isnan(value))}
    return {**kept, "tokens": int(kept["tokens"])} if "tokens" in kept else kept


# -- words ----------------------------------------------------------------------------------------------------------------


def verdict_counts(claims: xr.Dataset) -> dict[str, int]:
    """How many claims have which verdict; words that none has are left out."""
    found = {word: int((claims.verdict == word).sum()) for word in WORDS}
    return {word: count for word, count in found.items() if count}


def in_words(claims: xr.Dataset, every: xr.Dataset | None = None) -> str:
    """One sentence: how many claims there are, and what became of them.

    Args:
        claims: from `lens.claims`, or some of them.
        every: what they were chosen from.
    """
    count, total = claims.sizes["claim"], (claims if every is None else every).sizes["claim"]
    if not count:
        return f"None of the {total} claims fits."
    start = f"{count} claims: " if count == total else f"{count} of {total} claims: "
    return f"{start}{_listed(verdict_counts(claims))}."


def _listed(counts: Mapping[str, int], join: str = " and ") -> str:
    parts = [f"{count} {_PHRASES[word][count > 1]}" for word, count in counts.items()]
    return ", ".join(parts[:-1]) + (join if len(parts) > 1 else "") + parts[-1]


def marks_by_notebook(claims: xr.Dataset) -> str:
    """A mark for each claim, by notebook and verdict: a picture in plain text."""
    names = list(dict.fromkeys(claims.notebook.to_numpy().tolist()))
    lines = ["  ".join(f"{mark} {word}" for word, mark in MARKS.items()), ""]
    for name in names:
        counts = verdict_counts(claims.isel(claim=np.flatnonzero(claims.notebook == name)))
        lines.append(f"{name:{max(map(len, names))}}  {''.join(MARKS[word] * count for word, count in counts.items())}")
    return "\n".join(lines)


# -- Markdown -------------------------------------------------------------------------------------------------------------


def markdown(claims: xr.Dataset, papers: xr.Dataset) -> str:
    """The ledger for the README: counts, a line for each paper, and every claim in a block that opens.

    Args:
        claims: from `lens.claims`.
        papers: from `lens.claims_by_paper`.
    """
    own = int((claims.paper == "ours").sum())
    count = int((papers.paper != "ours").sum())
    counts = in_words(claims).partition(": ")[2]
    total = claims.sizes["claim"]
    return "\n\n".join(
        (
            f"The notebooks test {total} claims, {total - own} of {count} papers and {own} of our own, on small models: {counts} "
            "A claim is open where its 95 % interval contains the threshold. "
            "[notebooks/claims.ipynb](notebooks/claims.ipynb) lets you search them and says what these words are worth.",
            _paper_table(papers),
            "<details>\n<summary>Every claim with its number, interval, model, notebook and command</summary>",
            *(_notebook_table(name, list(group)) for name, group in groupby(rows(claims), lambda row: row["notebook"])),
            "</details>",
        )
    )


def _paper_table(papers: xr.Dataset) -> str:
    lines = ["| paper | what it says | of its claims | verdict | notebook |", "|---|---|---|---|---|"]
    for place, paper in enumerate(papers.paper.to_numpy()):
        one = papers.isel(paper=place)
        counts = dict(zip(one.verdict.to_numpy(), one["count"].to_numpy().tolist(), strict=True))
        links = ", ".join(f"[{name}](notebooks/{name}.ipynb)" for name in str(one.notebooks.item()).split("; "))
        listed = _listed({word: count for word, count in counts.items() if count}, ", ")
        named, says = _paper_link(str(paper), str(one.name.item())), _escaped(str(one.says.item()))
        lines.append(f"| {named} | {says} | {listed} | {one.word.item()} | {links} |")
    return "\n".join(lines)


def _paper_link(paper: str, name: str) -> str:
    return f"[{_escaped(name)}](https://arxiv.org/abs/{paper})" if paper[:4].isdigit() and "." in paper else _escaped(name)


def _notebook_table(name: str, found: Sequence[Mapping[str, Any]]) -> str:
    """Claims of one notebook; what most of them share stands above the table, what differs in the claim's own line."""
    common = max((_made_by(row) for row in found), key=[_made_by(row) for row in found].count)
    lines = [f"**[{name}](notebooks/{name}.ipynb)**: {_escaped(common[0])}; `{common[1]}`", ""]
    lines += ["| claim | paper | published | here | needed | verdict |", "|---|---|---|---|---|---|"]
    for row in found:
        made, command = _made_by(row)
        apart = [_escaped(made)] * (made != common[0]) + [f"`{command}`"] * (command != common[1])
        claim = f"[{_escaped(row['claim'])}](notebooks/{name}.ipynb#{row['anchor']})"
        measured = [_escaped(row[name]) for name in ("measured", "note") if name in row]
        notes = "".join(f"<br><sub>{text}</sub>" for text in ["; ".join(measured), *apart] if text)
        numbers = (
            _escaped(row.get("published", "")),
            _escaped(here(row)).replace(", ", ",\u00a0"),
            needed(row).replace(" ", "\u00a0"),
        )
        lines.append(f"| {' | '.join((claim + notes, _source(row), *numbers, row['verdict']))} |")
    return "\n".join(lines)


def _made_by(row: Mapping[str, Any]) -> tuple[str, str]:
    return made_of(row, row["device"]), row["command"]


def _source(row: Mapping[str, Any]) -> str:
    """The source, its numbers as links."""
    text = _escaped(row["source"])
    for paper in row["paper"].split("; "):
        text = text.replace(f"arXiv {paper}", f"[arXiv {paper}](https://arxiv.org/abs/{paper})")
    return text


def _escaped(text: str) -> str:
    """Text that GitHub shows as it is: no markup, no formula, no end of a cell."""
    for character in "\\`*_|~$":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")


# -- page -----------------------------------------------------------------------------------------------------------------


def claims_spec(claims: xr.Dataset) -> dict[str, Any]:
    """Rows of the panel: for each claim its cells as HTML, in the order of `COLUMNS`, with all text escaped."""
    return {"columns": list(COLUMNS), "rows": [_cells(row) for row in rows(claims)]}


def _cells(row: Mapping[str, Any]) -> list[str]:
    asides = [linked(row["source"]), *(html_safe(row[name]) for name in ("measured", "note") if name in row)]
    made, command = made_of(row, row["device"]), html_safe(row["command"])
    threshold = f'<span class="lens-claims-aside">needed {html_safe(needed(row))}</span>' if "threshold" in row else ""
    picture = f'<div class="lens-claims-picture">{interval_picture(row)}{threshold}</div>' if threshold else ""
    return [
        f"<b>{html_safe(row['claim'])}</b>" + _asides(asides),
        html_safe(row.get("published", "")),
        html_safe(here(row)) + picture + _asides([html_safe(made)] * bool(here(row))),
        f'<span class="lens-claims-word">{MARKS[row["verdict"]]} {html_safe(row["verdict"])}</span>',
        f'<a href="{_link(row)}" target="_blank" rel="noopener">{html_safe(row["notebook"])}</a>'
        f'<div class="lens-claims-aside">{html_safe(row["section"])}</div>'
        f'<button class="lens-claims-copy" type="button" title="{command}" data-text="{command}">copy the command</button>',
    ]


def _asides(lines: Iterable[str]) -> str:
    return "".join(f'<div class="lens-claims-aside">{line}</div>' for line in lines)


def claims_list(claims: xr.Dataset, says: str) -> str:
    """The claims in short, as HTML for places without a kernel, which may have no style and no scroll: most are folded away."""
    lines = [_line(row) for row in rows(claims)]
    folded = f"<details><summary>and {len(lines) - OPEN} more</summary>{_list(lines[OPEN:])}</details>" if lines[OPEN:] else ""
    return f"<p>{html_safe(says)}</p>{_list(lines[:OPEN])}{folded}"


def _list(lines: Sequence[Sequence[str]]) -> str:
    left = 'style="text-align: left"'  # or a notebook puts it on the right
    head = "".join(f"<th {left}>{title}</th>" for title in ("claim", "here", "verdict", "notebook"))
    body = "".join(f"<tr>{''.join(f'<td {left}>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _line(row: Mapping[str, Any]) -> list[str]:
    found = f"{here(row)}, needed {needed(row)}" if here(row) and "threshold" in row else here(row)
    claim = f"{html_safe(row['claim'])} ({linked(row['source'])})"
    word = f"{MARKS[row['verdict']]} {row['verdict']}"
    return [claim, html_safe(found), html_safe(word), f'<a href="{_link(row)}">{html_safe(row["notebook"])}</a>']


def _link(row: Mapping[str, Any]) -> str:
    return html_safe(f"{quote(row['notebook'])}.ipynb#{row['anchor']}")


def export_claims(claims: xr.Dataset, path: Path | str, says: str) -> Path:
    """Write claims as `.csv`, `.nc` or `.html`; atomically.

    Args:
        claims: from `lens.claims`, or some of them.
        path: where to; the suffix chooses.
        says: the line above the table of a page.

    Raises:
        InputError: another suffix.
    """
    target = Path(path)
    if target.suffix not in (".csv", ".nc", ".html"):
        raise InputError(f"The file name {target.name!r} ends in {target.suffix!r}", "one of .csv, .html, .nc", "claims.csv")
    if target.suffix != ".html":
        return export_table(claims, target, [str(name) for name in claims.data_vars], ["claim"])
    with atomic_file(target) as temporary:
        temporary.write_text(_page(claims, says), encoding="utf-8")
    return target


def _page(claims: xr.Dataset, says: str) -> str:
    state = json.dumps({"spec": claims_spec(claims), "selected": {"claims": list(range(claims.sizes["claim"]))}})
    facts = " · ".join(f"{name} {value}" for name, value in claims.attrs.items())
    return PAGE.format(
        title="claims", css=widget_source(*STYLES), prompt=html_safe(says), footer=html_safe(facts),
        state=state.replace("<", "\\u003c"), script=widget_source(*SCRIPTS),  # so no text can close its own element
    )  # fmt: skip
