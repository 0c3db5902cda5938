"""The table that ends a notebook: each claim with its source and figure, what was measured here, and the verdict.

It shows as a page in a notebook, prints as plain text, and stores its rows beside both, so that the ledger of all claims is
gathered from what the notebooks really found.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lens.base.errors import InputError
from lens.base.text import html_safe
from lens.figures.table import text_table

KIND = "application/vnd.lens.verdicts+json"  # of the rows in a notebook's output
WORDS = ("holds", "holds in part", "fails", "open", "one run", "untested")
MARKS: dict[str, str] = dict(zip(WORDS, "●◐○◌◍–", strict=True))  # never colour alone
_FIELDS = ("claim", "source", "measured", "published", "value", "low", "high", "found", "threshold", "at_most", "verdict")
_ABOUT = ("section", "note", "model", "text", "tokens", "device", "command")
_LINK = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")
_FINEST = 6  # decimals, where an end lies close to its threshold
_WIDTH, _HEIGHT = 96, 16  # of the picture of an interval, in pixels


@dataclass(frozen=True, repr=False)
class VerdictTable:
    """Rows of claims, as `verdict_table` made them: plain values under one set of names.

    Attributes:
        rows: what each row says; numbers are rounded as they are shown.
        device: that they were measured on, for rows that do not come from a record.
    """

    rows: tuple[Mapping[str, Any], ...]
    device: str

    def __repr__(self) -> str:
        columns = _columns(self.rows)
        return text_table(list(columns), [[cell(row) for cell in columns.values()] for row in self.rows])

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        # The device is metadata, which a comparison of notebooks skips: the rows must not depend on it.
        data = {
            "text/plain": repr(self),
            "text/html": _page(self.rows, self.device),
            KIND: {"rows": [dict(row) for row in self.rows]},
        }
        return data, {"lens": {"device": self.device}}


def verdict_table(
    rows: Sequence[Mapping[str, Any]],
    model: Any,
    *,
    text: str = "",
    tokens: int | None = None,
    device: str | None = None,
    command: str | None = None,
    digits: int = 2,
) -> VerdictTable:
    """Claims beside what was measured.

    Args:
        rows: as the functions that judge claims give them, `lens.depth_verdicts` and its like. Of each, `claim`, `source` (paper
            with its arXiv number, or `ours`) and `verdict` (`holds`, `holds in part`, `fails`, `open` where the interval
            contains the threshold, `one run` where there is no interval, `untested`). And where there are any: `measured` (what
            the number is), `published` (the paper's figure), `value`, `low`, `high` (95 %), `threshold` (from which the claim
            holds, or with `at_most` up to which), `found` (in words, where it is no number), `section` (heading in the notebook
            that shows it), `note`; and `model`, `text`, `tokens`, `device`, `command` where a row differs from the rest.
        model: that was measured: a `lens.Model`, or its name in words.
        text: what it read: corpus, part, number of documents.
        tokens: how many in all.
        device: of a record that the numbers come from. None for the model's own.
        command: that makes them, where the notebook alone does not.
        digits: most decimals; an interval shows two digits of its own width, and more only where one of its ends would
            otherwise be shown on the wrong side of the threshold.

    Raises:
        InputError: a row without a claim, source or verdict, or with a word that is no verdict.
    """
    own = {"model": str(getattr(model, "name", model)), "text": text, "tokens": tokens, "device": device, "command": command}
    measured_on = str(getattr(model, "device", "cpu"))
    return VerdictTable(tuple(_row({**own, **row}, digits) for row in rows), measured_on)


def _row(row: Mapping[str, Any], digits: int) -> dict[str, Any]:
    lacking = [name for name in ("claim", "source", "verdict") if not row.get(name)]
    if lacking:
        raise InputError(f"A row of claims has no {lacking[0]}: {dict(row)}", "claim, source and verdict", "a row with all three")
    if row["verdict"] not in WORDS:
        raise InputError(f"The verdict {row['verdict']!r} of {row['claim']!r}", ", ".join(WORDS), "lens.verdict, which words it")
    known = {name: _plain(row[name]) for name in (*_FIELDS, *_ABOUT) if row.get(name) is not None and row[name] != ""}
    decimals = _decimals(known, digits)
    for name in ("value", "low", "high"):
        if name in known:
            known[name] = round(known[name], decimals) + 0.0  # no negative zero
    return known


def _plain(value: Any) -> Any:
    """As JSON holds it: numpy's own numbers are no numbers there."""
    return value.item() if hasattr(value, "item") else value


def _decimals(row: Mapping[str, Any], most: int) -> int:
    """Two digits of the interval's width, no more than `most`, and as many as keep each end on its side of the threshold."""
    ends = [float(row[name]) for name in (("low", "high") if "low" in row else ("value",)) if name in row]
    width = max(ends) - min(ends) if ends else 0.0
    fewest = min(most, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else most
    threshold = row.get("threshold")
    if not isinstance(threshold, (int, float)):
        return fewest
    kept = (n for n in range(fewest, _FINEST) if all((round(end, n) >= threshold) == (end >= threshold) for end in ends))
    return next(kept, _FINEST)


# -- cells ----------------------------------------------------------------------------------------------------------------


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Titles and what to show under them; columns that no row fills are left out."""
    every = {"claim": _claim, "source": _source, "measured": _measured, "published": _published, "here": here, "needed": needed}
    return {**{title: cell for title, cell in every.items() if any(cell(row) for row in rows)}, "verdict": _verdict}


def _claim(row: Mapping[str, Any]) -> str:
    return str(row["claim"])


def _source(row: Mapping[str, Any]) -> str:
    return str(row["source"])


def _measured(row: Mapping[str, Any]) -> str:
    return "; ".join(str(row[name]) for name in ("measured", "note") if name in row)


def _published(row: Mapping[str, Any]) -> str:
    return _number(row["published"]) if "published" in row else ""


def here(row: Mapping[str, Any]) -> str:
    """What was found, in words or as a value with its interval; empty where nothing was."""
    if "found" in row:
        return str(row["found"])
    numbers = [float(row[name]) for name in ("value", "low", "high") if name in row]
    decimals = max((len(f"{number:.{_FINEST}f}".rstrip("0").partition(".")[2]) for number in numbers), default=0)
    value, *ends = [""] * ("value" not in row) + [f"{number:.{decimals}f}" for number in numbers] or [""]
    return f"{value} [{', '.join(ends)}]".strip() if ends else value


def needed(row: Mapping[str, Any]) -> str:
    """The threshold, with its direction; empty where there is none."""
    return f"{'≤' if row.get('at_most') else '≥'} {_number(row['threshold'])}" if "threshold" in row else ""


def _verdict(row: Mapping[str, Any]) -> str:
    return str(row["verdict"])


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (int, float)) else str(value)


# -- page -----------------------------------------------------------------------------------------------------------------

# A notebook that is only opened is not trusted: style sheets and pictures are taken out there, styles of single cells stay.
_STYLE = """<style>
.lens-verdicts { border-collapse: collapse; margin: 4px 0; font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif); }
.lens-verdicts th, .lens-verdicts td { padding: 4px 14px 4px 0 !important; max-width: 32em; white-space: normal;
  border-bottom: 1px solid var(--jp-border-color2, #8884) !important; }
.lens-verdicts tr { background: none !important; }
.lens-verdicts th, .lens-verdicts small, .lens-verdicts + p { color: var(--jp-ui-font-color2, inherit); font-weight: normal; }
.lens-verdicts small { font-size: 12px; }
.lens-verdicts a { white-space: nowrap; color: var(--jp-content-link-color, inherit); }
.lens-verdicts .lens-number { white-space: nowrap; font-variant-numeric: tabular-nums; }
.lens-verdicts svg { display: block; overflow: visible; color: var(--jp-ui-font-color1, inherit); }
</style>"""
_TITLES = ("claim", "published", "here", "needed", "verdict")
_PLACED = 'style="text-align: left; vertical-align: top"'


def _page(rows: Sequence[Mapping[str, Any]], device: str) -> str:
    filled = _columns(rows)
    titles = [title for title in _TITLES if title in filled]
    head = "".join(f"<th {_PLACED}>{title}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(_cells(row, titles))}</tr>" for row in rows)
    made = html_safe("; ".join(dict.fromkeys(made_of(row, device) for row in rows)))
    return f'{_STYLE}<table class="lens-verdicts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{made}</p>'


def _cells(row: Mapping[str, Any], titles: Sequence[str]) -> list[str]:
    asides = [html_safe(str(row[name])) for name in ("measured", "note") if name in row] + [linked(row["source"])]
    told = _published(row)
    made = {
        "claim": f"<td {_PLACED}><b>{html_safe(row['claim'])}</b><br><small>{'<br>'.join(asides)}</small></td>",
        "published": f"<td {_PLACED}>{html_safe(told)}</td>" if " " in told else _kept_whole(told),
        "here": f"<td {_PLACED}>{html_safe(here(row))}</td>" if "found" in row else _kept_whole(here(row), interval_picture(row)),
        "needed": _kept_whole(needed(row)),
        "verdict": _kept_whole(f"{MARKS[row['verdict']]} {row['verdict']}"),
    }
    return [made[title] for title in titles]


def _kept_whole(text: str, picture: str = "") -> str:
    """A cell that does not break."""
    return f'<td {_PLACED} class="lens-number" nowrap>{html_safe(text)}{picture}</td>'


def linked(source: str) -> str:
    """A source as HTML, arXiv numbers as links."""
    return _LINK.sub(lambda found: f'<a href="https://arxiv.org/abs/{found[1]}">{found[0]}</a>', html_safe(source))


def made_of(row: Mapping[str, Any], device: str) -> str:
    """What a row was measured on: model, text, tokens, device."""
    tokens = f"{row['tokens']:,} tokens" if "tokens" in row else ""
    return ", ".join(part for part in (row["model"], row.get("text", ""), tokens, row.get("device", device)) if part)


def interval_picture(row: Mapping[str, Any]) -> str:
    """A bar for the interval, a dot for the value, a line for the threshold, as inline SVG; empty where one of them lacks."""
    if not {"value", "low", "high", "threshold"} <= row.keys():
        return ""
    ends = [float(row[name]) for name in ("low", "high", "threshold", "value")]
    start, span = min(ends), (max(ends) - min(ends)) or 1.0
    low, high, threshold, value = (4 + (_WIDTH - 8) * (end - start) / span for end in ends)
    middle, label = _HEIGHT / 2, html_safe(f"{here(row)}, needed {needed(row)}")
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{label}">'
        f'<line x1="{threshold:.1f}" x2="{threshold:.1f}" y1="1" y2="{_HEIGHT - 1}" stroke="#d55e00" stroke-width="2"/>'
        f'<line x1="{low:.1f}" x2="{max(high, low + 1):.1f}" y1="{middle}" y2="{middle}" stroke="currentColor" stroke-width="3"'
        f' stroke-opacity=".45"/><circle cx="{value:.1f}" cy="{middle}" r="3" fill="currentColor"/></svg>'
    )
