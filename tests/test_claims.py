"""The ledger tells the truth: it is what the notebooks hold, and no word contradicts its numbers."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import nbformat
import pytest

import lens
from lens.base.errors import InputError
from lens.figures.verdicts import KIND
from lens.probes.claims import papers_of
from tests.refresh_claims import MARKERS, README, RECORD, ROOT, anchor, gather, headings, record, rows_of, with_ledger

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DECIDED = ("holds", "fails", "open")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return json.loads(RECORD.read_text(encoding="utf-8"))["claims"]


def test_the_record_is_what_the_notebooks_hold():
    assert RECORD.read_text(encoding="utf-8") == record(gather()), "run python tests/refresh_claims.py"


def test_readme_is_what_the_record_gives(rows):
    text = README.read_text(encoding="utf-8")
    assert text == with_ledger(text, rows), "run python tests/refresh_claims.py"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_sections_exist_and_a_verdict_has_rows(path):
    cells = nbformat.read(path, as_version=4).cells
    found = [heading for cell in cells if cell.cell_type == "markdown" for heading in headings(cell.source)]
    rows = rows_of(path)
    assert bool(rows) == ("Verdict" in found)
    assert {row["section"] for row in rows} <= set(found)
    twice = {heading for heading in found if found.count(heading) > 1}
    assert not twice & {row["section"] for row in rows}, "a link would lead to the first of them"


def test_every_source_can_be_found(rows):
    for row in rows:
        papers_of(row["source"])


def contradiction(row: dict[str, Any]) -> str | None:
    """What the numbers of a row say, where its word says something else."""
    if row["verdict"] not in DECIDED or "threshold" not in row or not {"value", "low"} & row.keys():
        return None
    low, high = (float(row[name] if name in row else row["value"]) for name in ("low", "high"))
    threshold = float(row["threshold"])
    ends, threshold = ((-high, -low), -threshold) if row.get("at_most") else ((low, high), threshold)
    said = lens.verdict(ends, at_least=threshold)
    return None if said == row["verdict"] else said


def test_no_word_contradicts_its_numbers(rows):
    assert [(row["notebook"], row["claim"], contradiction(row)) for row in rows if contradiction(row)] == []
    for row in rows:
        if {"value", "low", "high"} <= row.keys():
            assert row["low"] <= row["value"] <= row["high"], row
        if row["verdict"] == "open":
            assert "low" in row or "found" in row, row
        if row["verdict"] == "untested":
            assert not {"value", "low", "found"} & row.keys(), row


def test_a_contradiction_is_seen():
    row = {"verdict": "holds", "value": 0.5, "low": 0.4, "high": 0.6, "threshold": 0.45}
    assert contradiction(row) == "open"
    assert contradiction({**row, "threshold": 0.3}) is None
    assert contradiction({**row, "threshold": 0.3, "at_most": True}) == "fails"
    assert contradiction({"verdict": "holds", "value": 0.5, "threshold": 0.6}) == "fails"


def test_one_measure_has_one_word(rows):
    """A claim may be tested in two ways or on two models; what is the same in all of these has one verdict."""
    words = defaultdict(set)
    for row in rows:
        papers = tuple(papers_of(row["source"]))
        words[papers, row["claim"], row.get("measured"), row.get("note"), row["model"], row.get("text")].add(row["verdict"])
    assert [key for key, found in words.items() if len(found) > 1] == []


# -- gathering ------------------------------------------------------------------------------------------------------------


def notebook(tmp_path, *cells):
    path = tmp_path / "some-claims.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


def verdicts(*rows: dict[str, Any], device: str = "cpu"):
    data = {"text/plain": "", KIND: {"rows": list(rows)}}
    output = nbformat.v4.new_output("execute_result", data, metadata={"lens": {"device": device}})
    return nbformat.v4.new_code_cell("table", outputs=[output])


ROW = {"claim": "It is so", "source": "ours", "model": "a model", "verdict": "open"}


def test_rows_know_where_they_stand_and_what_made_them(tmp_path):
    text = nbformat.v4.new_markdown_cell("# Title\n\n## *The* `verdict` #\n\n```bash\n# no heading\n```\n")
    apart = {"section": "Title", "device": "a GPU", "command": "x"}
    (row, other) = rows_of(notebook(tmp_path, text, verdicts(ROW, {**ROW, **apart})))
    own = {"section": "The verdict", "device": "cpu", "command": "pytest --nbval notebooks/some-claims.ipynb"}
    assert row == {**ROW, **own, "anchor": "The-verdict", "notebook": "some-claims"}
    assert (other["section"], other["anchor"], other["device"], other["command"]) == ("Title", "Title", "a GPU", "x")


def test_anchors_are_those_of_jupyterlab_and_of_nbconvert():
    filters = pytest.importorskip("nbconvert.filters.strings")
    for heading in ("How linear?", "Break it: leave the first token in", "Attention or MLP?"):
        assert f'href="#{anchor(heading)}"' in filters.add_anchor(f"<h2>{heading}</h2>")
    assert anchor("a (b)") == "a-%28b%29"


@pytest.mark.parametrize("text", ["no marker", MARKERS[0], MARKERS[1] + MARKERS[0], 2 * "".join(MARKERS)])
def test_without_its_markers_readme_is_left_alone(text: str):
    with pytest.raises(InputError, match=r"^README\.md has not both markers.*$"):
        with_ledger(text, [{**ROW, "notebook": "x", "section": "y", "anchor": "y", "device": "cpu", "command": "z"}])
