"""The panel of the ledger: search, chips and menus, by click and by call."""

from __future__ import annotations

import pytest
import xarray as xr

import lens
from lens.panels import Claims
from lens.probes.claims import claims_by_paper, select_claims


@pytest.fixture(scope="module")
def every() -> xr.Dataset:
    return lens.claims()


@pytest.fixture
def panel() -> Claims:
    return Claims()


def test_first_sight_is_the_whole_ledger(panel, every):
    found = panel.summary()
    assert (found["claims"], found["of"], found["error"]) == (every.sizes["claim"], every.sizes["claim"], None)
    assert sum(found["verdicts"].values()) == every.sizes["claim"]
    assert found["says"].startswith(f"{every.sizes['claim']} claims: ")
    xr.testing.assert_identical(panel.claims, every)
    assert panel.chart.selected == {"claims": list(range(every.sizes["claim"]))}
    assert len(panel.chart.spec["rows"]) == every.sizes["claim"]


def test_every_choice_narrows_it(panel, every):
    notebook, verdict = str(every.notebook[0].item()), str(every.verdict[0].item())
    paper = str(every.paper[0].item()).split("; ")[0]
    for chosen in ({"notebook": notebook}, {"paper": paper}, {"verdict": verdict}, {"search": str(every.claim[0].item())}):
        panel.set(**{"notebook": "", "paper": "", "verdict": "", "search": "", **chosen})
        expected = select_claims(every, **chosen)
        xr.testing.assert_identical(panel.claims, expected)
        assert panel.summary()["claims"] == len(panel.chart.selected["claims"]) == expected.sizes["claim"] > 0


def test_chips_count_what_the_other_choices_leave(panel, every):
    notebook = str(every.notebook[-1].item())
    panel.set(notebook=notebook)
    found = select_claims(every, notebook=notebook)
    chips = dict(reversed(option) for option in panel._controls["verdict"].options)
    assert chips[""] == f"all {found.sizes['claim']}"
    for word in set(found.verdict.values):
        assert chips[word].endswith(f" {word} {int((found.verdict == word).sum())}")
    assert set(chips) == {"", *found.verdict.values}


def test_a_reader_chooses_in_the_page(panel, every):
    papers = claims_by_paper(every)
    verdict = str(papers.verdict[int(papers["count"][0].to_numpy().argmax())].item())
    panel._top["paper"].value = str(papers.paper[0].item())
    panel.wait()
    assert panel.summary()["claims"] == int(papers["count"][0].sum())
    panel._controls["verdict"].value = verdict
    panel.wait()
    assert panel.summary()["verdicts"] == {verdict: int(papers["count"][0].max())}
    assert repr(panel) == f"Claims(paper={str(papers.paper[0].item())!r}, verdict={verdict!r})"


def test_a_search_without_a_hit_says_so_and_comes_back(panel, every):
    panel.set(search="no claim has these words")
    assert panel.summary()["says"] == f"None of the {every.sizes['claim']} claims fits."
    assert panel.chart.selected == {"claims": []}
    panel.set(search="")
    assert panel.summary()["claims"] == every.sizes["claim"]


@pytest.mark.parametrize("wrong", [{"verdict": "true"}, {"paper": "2308"}, {"notebook": "nowhere"}, {"search": 3}])
def test_a_wrong_choice_is_one_line_and_the_list_stays(panel, every, wrong):
    panel.set(**wrong)
    assert "Needed: " in panel.summary()["error"]
    assert panel.summary()["claims"] == every.sizes["claim"]
    panel.set(verdict="", paper="", notebook="", search="")
    assert panel.summary()["error"] is None


def test_what_is_shown_is_written(panel, tmp_path):
    panel.set(verdict="fails")
    count = panel.summary()["claims"]
    with xr.open_dataset(panel.export(tmp_path / "claims.nc"), engine="h5netcdf") as read:
        xr.testing.assert_identical(read.load(), panel.claims)
    assert panel.export(tmp_path / "claims.html").read_text().count("copy the command") == count


def test_without_a_kernel_a_list_stays(panel):
    panel.set(verdict="fails")
    page = panel._repr_mimebundle_()["text/html"]
    assert page.startswith(f"<p>{panel.summary()['says']}</p>")
    assert page.count("○ fails") == panel.summary()["claims"]
