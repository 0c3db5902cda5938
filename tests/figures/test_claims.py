"""The ledger in words, in Markdown and as a page: every number from the Dataset, and text that stays text."""

from __future__ import annotations

import re
from typing import Any

import pytest
import xarray as xr
from markdown_it import MarkdownIt

from lens.base.errors import InputError
from lens.figures.claims import (
    OPEN,
    claims_list,
    claims_spec,
    export_claims,
    in_words,
    markdown,
    marks_by_notebook,
    rows,
    verdict_counts,
)
from lens.probes.claims import claims_by_paper, claims_dataset, select_claims
from tests.probes.test_claims import PLACE, ROWS

HOSTILE = 'a | b <img src=x onerror="x()"> *c* `d` $e$ _f_ </script> & \\'


def ledger(*more: dict[str, Any]) -> xr.Dataset:
    return claims_dataset([{**PLACE, **row} for row in (*ROWS, *more)])


def page(claims: xr.Dataset) -> str:
    return MarkdownIt("commonmark").enable("table").render(markdown(claims, claims_by_paper(claims)))


def cells(html: str) -> list[list[str]]:
    lines = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [
        [re.sub(r"<[^>]+>", "", cell).replace("\u00a0", " ") for cell in re.findall(r"<td[^>]*>(.*?)</td>", line, re.DOTALL)]
        for line in lines
    ]


def test_counts_in_words():
    claims = ledger()
    assert verdict_counts(claims) == {"holds": 1, "fails": 1, "open": 1, "untested": 1}
    assert in_words(claims) == "4 claims: 1 holds, 1 fails, 1 is open and 1 is untested."
    assert in_words(select_claims(claims, verdict="fails"), claims) == "1 of 4 claims: 1 fails."
    assert in_words(select_claims(claims, search="nothing"), claims) == "None of the 4 claims fits."


def test_marks_stand_for_claims():
    legend, _, *lines = marks_by_notebook(ledger({"claim": "Another", "source": "ours", "verdict": "holds"})).split("\n")
    assert [line.split() for line in lines] == [["relations", "●●○–"], ["depth-lab", "◌"]]
    assert legend.split() == [
        "●",
        "holds",
        "◐",
        "holds",
        "in",
        "part",
        "○",
        "fails",
        "◌",
        "open",
        "◍",
        "one",
        "run",
        "–",
        "untested",
    ]


def test_rows_hold_what_there_is():
    first = rows(ledger())[0]
    assert first == {**PLACE, **ROWS[0], "published": "0.48", "paper": "2308.09124", "at_most": 0}


def test_the_readme_has_a_line_for_each_paper_and_each_claim():
    html = page(ledger({"claim": "Another", "source": "arXiv 2308.09124", "verdict": "fails"}))
    lines = [line for line in cells(html) if line]
    assert lines[0] == ["Hernandez et al. 2023", "A relation is a matrix", "1 holds, 2 fail", "holds in part", "relations"]
    assert lines[3][0] == "ours"
    assert [line[3:] for line in lines if "A relation is a matrix" in line[0]] == [["0.58 [0.51, 0.66]", "≥ 0.48", "holds"]]
    assert [line[3:] for line in lines if "Small errors" in line[0]] == [["0.1 [0.0, 0.3]", "≤ 0.2", "open"]]
    assert html.count("<table>") == 4  # papers; three runs of one notebook
    assert 'href="notebooks/relations.ipynb#How-linear?"' in html
    assert 'href="https://arxiv.org/abs/2202.05262"' in html
    assert html.index("5 claims, 4 of 3 papers and 1 of our own, on small models: 1 holds, 2 fail") < html.index("<table>")


def test_what_a_claim_has_of_its_own_stands_in_its_line():
    html = page(ledger({"claim": "Elsewhere", "source": "ours", "verdict": "open", "device": "a GPU", "command": "lens check"}))
    (line,) = (line for line in cells(html) if line and line[0].startswith("Elsewhere"))
    assert line[0] == "ElsewhereSmolLM2-135M, a GPUlens check"


def test_text_stays_text_in_markdown():
    html = page(ledger({"claim": HOSTILE, "source": "ours", "published": HOSTILE, "verdict": "open"}))
    line = next(line for line in cells(html) if line and line[0].startswith("a "))
    assert len(line) == 6
    assert "<img" not in html
    assert "<em>" not in html
    shown = HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    assert line[2] == shown


def test_text_stays_text_on_a_page(tmp_path):
    claims = ledger({"claim": HOSTILE, "source": HOSTILE + " 2020", "found": HOSTILE, "note": HOSTILE, "verdict": "holds"})
    for html in (claims_list(claims, HOSTILE), *claims_spec(claims)["rows"][-1]):
        assert "<img" not in html
        assert "</script>" not in html
    text = export_claims(claims, tmp_path / "claims.html", HOSTILE).read_text()
    assert "<img" not in text
    assert text.count("</script>") == 2


def test_a_long_list_is_folded():
    more = [{"claim": f"Claim {number}", "source": "ours", "verdict": "open"} for number in range(OPEN)]
    first, folded = claims_list(ledger(*more), "All.").split("<details><summary>and 4 more</summary>")
    assert (first.count("<tr>"), folded.count("<tr>")) == (1 + OPEN, 1 + 4)
    assert "<details>" not in claims_list(ledger(), "All.")


def test_a_row_links_to_its_section_and_holds_its_command():
    last = claims_spec(ledger())["rows"][0][-1]
    assert 'href="relations.ipynb#How-linear?"' in last
    assert 'data-text="pytest --nbval notebooks/relations.ipynb"' in last


def test_files(tmp_path):
    claims = ledger({"claim": "=1+1", "source": "ours", "verdict": "open"})
    table = export_claims(claims, tmp_path / "claims.csv", "").read_text()
    assert table.count("\n") == 6
    assert "'=1+1" in table
    with xr.open_dataset(export_claims(claims, tmp_path / "claims.nc", ""), engine="h5netcdf") as read:
        assert read.verdict.values.tolist() == claims.verdict.values.tolist()
    with pytest.raises(InputError, match=r"'\.doc'"):
        export_claims(claims, tmp_path / "claims.doc", "")
