"""The ledger as a Dataset: whose claims, what became of them, and how some are chosen."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.figures.verdicts import WORDS
from lens.probes.claims import (
    VERDICTS,
    claims_by_paper,
    claims_dataset,
    paper_verdict,
    papers_of,
    select_claims,
    verdicts_if_wider,
)

PLACE = {"notebook": "relations", "section": "How linear?", "anchor": "How-linear?", "device": "cpu", "model": "SmolLM2-135M",
         "command": "pytest --nbval notebooks/relations.ipynb"}  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"claim": "A relation is a matrix", "source": "Hernandez et al., arXiv 2308.09124, section 4", "published": 0.48,
     "value": 0.58, "low": 0.51, "high": 0.66, "threshold": 0.48, "verdict": "holds", "tokens": 512},
    {"claim": "Its inverse edits", "source": "Hernandez, arXiv 2308.09124; Meng et al., arXiv:2202.05262", "published": "5 of 6",
     "found": "none of 6", "verdict": "fails"},
    {"claim": "Small errors stay small", "source": "ours, after arXiv 2202.05262", "value": 0.1, "low": 0.0, "high": 0.3,
     "threshold": 0.2, "at_most": True, "verdict": "open", "notebook": "depth-lab"},
    {"claim": "Answers take shape", "source": "nostalgebraist 2020", "verdict": "untested"},
]  # fmt: skip


@pytest.fixture(scope="module")
def ledger() -> xr.Dataset:
    return claims_dataset([{**PLACE, **row} for row in ROWS])


def test_the_words_are_those_of_the_verdict_table():
    assert VERDICTS == WORDS


def test_numbers_are_floats_and_what_is_missing_is_nan(ledger):
    np.testing.assert_array_equal(ledger.value, [0.58, np.nan, 0.1, np.nan])
    np.testing.assert_array_equal(ledger.threshold, [0.48, np.nan, 0.2, np.nan])
    np.testing.assert_array_equal(ledger.tokens, [512, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(ledger.at_most, [0, 0, 1, 0])
    assert ledger.published.values.tolist() == ["0.48", "5 of 6", "", ""]
    assert ledger.found.values.tolist() == ["", "none of 6", "", ""]


def test_it_survives_netcdf_and_becomes_a_table(ledger, tmp_path):
    ledger.to_netcdf(tmp_path / "claims.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "claims.nc", engine="h5netcdf") as read:
        xr.testing.assert_identical(read.load(), ledger)
    table = ledger.to_dataframe()
    assert table.loc["Its inverse edits", "paper"] == "2308.09124; 2202.05262"


@pytest.mark.parametrize(
    ("source", "papers"),
    [
        ("Golden 2025, arXiv 2505.24293, section 3", {"2505.24293": "Golden 2025"}),
        ("arXiv 2605.15514; Men et al. (arXiv:2511.09146)", {"2605.15514": "", "2511.09146": "Men et al."}),
        ("nostalgebraist 2020, a post", {"nostalgebraist 2020": "nostalgebraist 2020"}),
        ("ours, after Wu et al., arXiv 2405.18781", {"ours": "ours"}),
    ],
)
def test_papers_are_known_by_their_numbers(source: str, papers: dict[str, str]):
    assert papers_of(source) == papers


def test_a_source_that_nobody_can_find_is_refused():
    with pytest.raises(InputError, match="'somebody'"):
        papers_of("somebody")
    with pytest.raises(InputError, match="There is no claim"):
        claims_dataset([])


def test_a_claim_counts_for_each_of_its_papers(ledger):
    papers = claims_by_paper(ledger)
    assert papers.paper.values.tolist() == ["2308.09124", "2202.05262", "nostalgebraist 2020", "ours"]
    assert papers.name.values.tolist() == ["Hernandez et al. 2023", "Meng et al. 2022", "nostalgebraist 2020", "ours"]
    assert papers.word.values.tolist() == ["holds in part", "fails", "untested", ""]
    assert papers["count"].sum("verdict").values.tolist() == [2, 1, 1, 1]
    assert papers["count"].sel(paper="2308.09124", verdict="fails") == 1
    assert papers.says.values.tolist() == ["A relation is a matrix", "Its inverse edits", "Answers take shape", ""]
    assert papers.notebooks.values.tolist() == ["relations", "relations", "relations", "depth-lab"]


def test_a_paper_is_shown_by_the_notebook_that_is_most_about_it():
    rows = [{**PLACE, **ROWS[0], "claim": claim, "notebook": name} for claim, name in (("1", "a"), ("2", "b"), ("3", "b"))]
    papers = claims_by_paper(claims_dataset(rows))
    assert (papers.says.item(), papers.notebooks.item()) == ("2", "a; b")


def test_a_paper_without_authors_is_its_number():
    papers = claims_by_paper(claims_dataset([{**PLACE, **ROWS[0], "source": "arXiv 2604.14430"}]))
    assert papers.name.values.tolist() == ["arXiv 2604.14430"]


def test_the_word_of_a_paper_follows_from_those_of_its_claims():
    """Against the rule in its own words, for every set of verdicts."""
    for kinds in itertools.product([0, 1], repeat=len(VERDICTS)):
        counts = dict(zip(VERDICTS, kinds, strict=True))
        decided = {word for word in ("holds", "holds in part", "fails") if counts[word]}
        if len(decided) == 1:
            expected = decided.pop()
        elif decided:
            expected = "holds in part"
        else:
            expected = "open" if counts["open"] or counts["one run"] else "untested"
        assert paper_verdict(counts) == expected


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ({}, [0, 1, 2, 3]),
        ({"search": "HERNANDEZ matrix"}, [0]),
        ({"search": "how linear"}, [0, 1, 2, 3]),
        ({"verdict": "fails"}, [1]),
        ({"paper": "2202.05262"}, [1]),
        ({"paper": "ours", "notebook": "depth-lab"}, [2]),
        ({"notebook": "relations", "verdict": "open"}, []),
    ],
)
def test_some_claims_are_chosen(ledger, chosen: dict[str, str], found: list[int]):
    assert select_claims(ledger, **chosen).claim.values.tolist() == [ROWS[place]["claim"] for place in found]


@pytest.mark.parametrize("wrong", [{"verdict": "true"}, {"paper": "2308"}, {"notebook": "nowhere"}])
def test_what_no_claim_has_is_refused_with_what_there_is(ledger, wrong: dict[str, str]):
    with pytest.raises(InputError, match="Needed: one of"):
        select_claims(ledger, **wrong)


def test_wider_intervals_decide_less(ledger):
    assert verdicts_if_wider(ledger, 1).values.tolist() == ["holds", "open"]
    assert verdicts_if_wider(ledger, 2).values.tolist() == ["open", "open"]  # .44 to .74 holds .48
    assert verdicts_if_wider(ledger, 0.5).claim.values.tolist() == [ROWS[0]["claim"], ROWS[2]["claim"]]
    assert verdicts_if_wider(ledger, 0.4).values.tolist() == ["holds", "holds"]  # up to .18 of .2


def test_the_shipped_ledger_opens():
    ledger, papers = lens.claims(), lens.claims_by_paper(lens.claims())
    assert set(ledger.verdict.values) <= set(VERDICTS)
    assert (papers["count"].sum("verdict") > 0).all()
