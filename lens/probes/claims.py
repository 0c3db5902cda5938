"""The ledger: every claim that a notebook tests, what was published, what was measured here, and the verdict.

The record is gathered from the verdict tables of the stored notebooks by `python tests/refresh_claims.py`, never typed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.probes.dataset import exact, texts, variable
from lens.probes.verdict import verdict as judge

SOURCE = "verdict tables of the notebooks, gathered by tests/refresh_claims.py"
VERDICTS: tuple[str, ...] = ("holds", "holds in part", "fails", "open", "one run", "untested")
OURS = "ours"  # in the place of a paper, for what no paper says
_TEXTS = {
    "source": "paper, or ours",
    "measured": "what the number is",
    "published": "the paper's figure",
    "found": "what was found, where it is no number",
    "note": "remark",
    "verdict": "whether the claim held",
    "notebook": "where it was tested",
    "section": "heading in the notebook",
    "anchor": "of the heading, in a link",
    "model": "what was measured",
    "text": "what it read",
    "device": "that it ran on",
    "command": "that makes the numbers",
}
_NUMBERS = {
    "value": "what was measured",
    "low": "lower end of its 95 % interval",
    "high": "upper end of its 95 % interval",
    "threshold": "from which the claim holds",
    "tokens": "that were read",
}
_ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")


def claims() -> xr.Dataset:
    """Every claim that the notebooks test, as shipped.

    Returns:
        Dataset over `claim` (its text). `paper`: arXiv numbers, else author and year, or `ours`, joined by `; `; `source`,
        `measured`, `published` and `found` in words; `value` with `low` and `high` (95 %), `threshold` from which the claim
        holds, or up to which where `at_most` is 1 (NaN where there is none); `verdict`; `notebook`, `section` and its `anchor`
        there; `model`, `text`, `tokens`, `device` and `command` of the measurement; `note`.
    """
    return claims_dataset(json.loads(files("lens.records").joinpath("claims.json").read_text(encoding="utf-8"))["claims"])


def claims_dataset(rows: Sequence[Mapping[str, Any]]) -> xr.Dataset:
    """The ledger from rows as `lens.verdict_table` stores them, each with its `notebook`, `section` and `anchor`.

    Raises:
        InputError: there is no row.
    """
    if not rows:
        raise InputError("There is no claim", "rows of verdict tables", "python tests/refresh_claims.py")
    found = {name: texts(("claim",), [_worded(row.get(name)) for row in rows], label) for name, label in _TEXTS.items()}
    for name, label in _NUMBERS.items():
        found[name] = exact(("claim",), np.array([row.get(name, np.nan) for row in rows]), label)
    found["at_most"] = variable(
        ("claim",), np.array([int(row.get("at_most", False)) for row in rows]), "holds up to the threshold"
    )
    found["paper"] = texts(
        ("claim",), ["; ".join(papers_of(str(row["source"]))) for row in rows], "arXiv number, or who and when"
    )
    label = texts(("claim",), [row["claim"] for row in rows], "what is said")
    return xr.Dataset(found, {"claim": label}, {"source": SOURCE, "probe": "claims", **library_versions()})


def _worded(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, (int, float)) else str(value)


def papers_of(source: str) -> dict[str, str]:
    """The papers that a source names: by arXiv number, else by author and year, with the authors as the source writes them.

    Raises:
        InputError: a source with neither number nor year that is not `ours`.
    """
    if source.startswith(OURS):
        return {OURS: OURS}
    found: dict[str, str] = {}
    for part in re.split(r";\s*", source):
        number, year = _ARXIV.search(part), _YEAR.search(part)
        if number:
            found[number[1]] = part[: number.start()].strip(" ,(:")
        elif year:
            found[part[: year.end()].strip()] = part[: year.end()].strip()
    if not found:
        raise InputError(f"The source {source!r}", "an arXiv number, a year, or 'ours'", "'Author et al., arXiv 2308.09124'")
    return found


def claims_by_paper(claims: xr.Dataset) -> xr.Dataset:
    """What became of each paper's claims.

    A paper whose decided claims all hold `holds`; where all fail it `fails`; where some do, or one holds in part, it
    `holds in part`. With no claim decided it is `open`, with none tested `untested`. Claims are as the notebooks cut them, so
    that the word says how this suite read a paper, not how much of the paper is right. What no paper says is the group `ours`,
    without a word.

    Args:
        claims: from `lens.claims`, or some of them.

    Returns:
        Dataset over `paper` (as in `claims`, in order of appearance, `ours` last) and `verdict`: `count[paper, verdict]`,
        `word[paper]`, `name[paper]` (authors), `says[paper]` (the first claim in the notebook that tests most of them),
        `notebooks[paper]` (joined by `; `).
    """
    rows = [(set(paper.split("; ")), place) for place, paper in enumerate(claims.paper.to_numpy())]
    papers = list(dict.fromkeys(one for paper in claims.paper.to_numpy() for one in paper.split("; ")))
    papers = [*(one for one in papers if one != OURS), *(one for one in papers if one == OURS)]
    members = [claims.isel(claim=[place for named, place in rows if one in named]) for one in papers]
    counts = [[int((of.verdict == word).sum()) for word in VERDICTS] for of in members]
    named = [_name(one, of.source.to_numpy().tolist()) for one, of in zip(papers, members, strict=True)]
    words = [paper_verdict(dict(zip(VERDICTS, row, strict=True))) for row in counts]
    return xr.Dataset(
        {
            "count": variable(("paper", "verdict"), np.array(counts), "claims with this verdict"),
            "word": texts(("paper",), ["" if one == OURS else word for one, word in zip(papers, words, strict=True)], "verdict"),
            "name": texts(("paper",), named, "who says so"),
            "says": texts(
                ("paper",),
                ["" if one == OURS else _leading(of) for one, of in zip(papers, members, strict=True)],
                "a claim of it",
            ),
            "notebooks": texts(("paper",), ["; ".join(dict.fromkeys(of.notebook.to_numpy())) for of in members], "where tested"),
        },
        {
            "paper": texts(("paper",), papers, "arXiv number, or who and when"),
            "verdict": texts(("verdict",), VERDICTS, "verdict"),
        },
        claims.attrs,
    )


def paper_verdict(counts: Mapping[str, int]) -> str:
    """One word for several claims, from how many have which verdict."""
    if counts["holds in part"] or (counts["holds"] and counts["fails"]):
        return "holds in part"
    if counts["holds"] or counts["fails"]:
        return "holds" if counts["holds"] else "fails"
    return "open" if counts["open"] or counts["one run"] else "untested"


def _leading(claims: xr.Dataset) -> str:
    """The first claim in the notebook that is most about a paper."""
    notebooks, counts = np.unique(claims.notebook.to_numpy(), return_counts=True)
    return str(claims.claim.to_numpy()[claims.notebook.to_numpy() == notebooks[counts.argmax()]][0])


def _name(paper: str, sources: Sequence[str]) -> str:
    """Authors, from the first source that gives them, and the year, which every arXiv number begins with."""
    names = (papers_of(source).get(paper, "") for source in sources)
    name = next((one for one in names if one), "")
    if not name:
        return f"arXiv {paper}"
    return name if paper == OURS or _YEAR.search(name) else f"{name} 20{paper[:2]}"


def select_claims(claims: xr.Dataset, *, search: str = "", verdict: str = "", paper: str = "", notebook: str = "") -> xr.Dataset:
    """Some of the claims; what is empty does not choose.

    Args:
        claims: from `lens.claims`.
        search: words that all occur in a claim, its source, figures or section; upper and lower case are the same.
        verdict: one of the words.
        paper: as in `claims_by_paper`.
        notebook: its name.

    Raises:
        InputError: a verdict, paper or notebook that no claim has, with those that there are.
    """
    known = {"verdict": set(VERDICTS), "paper": _papers(claims), "notebook": set(claims.notebook.to_numpy())}
    for name, asked in (("verdict", verdict), ("paper", paper), ("notebook", notebook)):
        if asked and asked not in known[name]:
            raise InputError(f"The {name} is {asked!r}", f"one of {', '.join(sorted(known[name]))}", f"{name}=''")
    keep = np.ones(claims.sizes["claim"], bool)
    if verdict:
        keep &= claims.verdict.to_numpy() == verdict
    if notebook:
        keep &= claims.notebook.to_numpy() == notebook
    if paper:
        keep &= np.array([paper in named.split("; ") for named in claims.paper.to_numpy()])
    if search.split():
        keep &= np.array([all(word in line for word in search.lower().split()) for line in _searched(claims)])
    return claims.isel(claim=np.flatnonzero(keep))


def verdicts_if_wider(claims: xr.Dataset, factor: float | int) -> xr.DataArray:
    """What the words would be, were every interval wider about its value; for judging many claims at once.

    Args:
        claims: from `lens.claims`; those with a number, an interval and a threshold are judged again.
        factor: how many times as wide; 1 gives the words as they are.

    Returns:
        Words over the `claim`s that have all three.
    """
    whole = (claims.value + claims.low + claims.high + claims.threshold).notnull() & claims.verdict.isin(
        ("holds", "fails", "open")
    )
    found = claims.isel(claim=np.flatnonzero(whole))
    sign = 1 - 2 * found.at_most.to_numpy()  # turned round, what is to be small is to be large
    ends = [sign * (found.value + factor * (end - found.value)).to_numpy() for end in (found.low, found.high)]
    rows = zip(np.minimum(*ends), np.maximum(*ends), sign * found.threshold.to_numpy(), strict=True)
    words = [judge((float(low), float(high)), at_least=float(threshold)) for low, high, threshold in rows]
    return xr.DataArray(texts(("claim",), words, "verdict with wider intervals"), {"claim": found.claim})


def _papers(claims: xr.Dataset) -> set[str]:
    return {one for named in claims.paper.to_numpy() for one in named.split("; ")}


def _searched(claims: xr.Dataset) -> list[str]:
    names = ("claim", "source", "measured", "published", "found", "note", "section", "notebook", "model")
    return [" ".join(row).lower() for row in zip(*(claims[name].to_numpy() for name in names), strict=True)]
