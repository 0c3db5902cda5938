"""The ledger's exported page in a real browser: wide and narrow, hostile text, and a command to copy."""

from __future__ import annotations

import pytest

from lens.figures.claims import export_claims
from lens.probes.claims import claims_dataset
from tests.figures.test_claims import HOSTILE
from tests.probes.test_claims import PLACE, ROWS

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect


@pytest.fixture
def page(watched, tmp_path):
    hostile = {"claim": HOSTILE, "source": f"{HOSTILE} 2020", "found": HOSTILE, "note": HOSTILE, "verdict": "holds"}
    claims = claims_dataset([{**PLACE, **row} for row in (hostile, *ROWS)])
    watched.page.goto(export_claims(claims, tmp_path / "claims.html", "All.").as_uri())
    expect(watched.page.locator("tbody tr")).to_have_count(1 + len(ROWS))
    yield watched.page
    assert (watched.complaints, watched.outside) == ([], [])


def test_text_is_text_and_the_head_stays_while_the_list_scrolls(page):
    assert page.locator("tbody img, tbody em").count() == 0
    expect(page.locator("tbody b").first).to_have_text(HOSTILE)
    scroller = page.locator(".lens-claims-scroller")
    scroller.evaluate("(list) => { list.style.maxHeight = '9rem'; list.scrollTop = 200; }")
    assert page.locator("th").first.bounding_box()["y"] == pytest.approx(scroller.bounding_box()["y"], abs=1)


@pytest.mark.parametrize("width", [390, 700, 1280])
def test_nothing_is_cut_at_any_width(page, width: int):
    page.set_viewport_size({"width": width, "height": 900})
    cut = "(cells) => cells.filter((cell) => cell.scrollWidth > cell.clientWidth + 1).length"
    assert page.locator("tbody td, .lens-claims-scroller").evaluate_all(cut) == 0
    expect(page.locator("thead")).to_be_visible() if width > 700 else expect(page.locator("thead")).to_be_hidden()


def test_a_command_is_copied_or_shown_to_be_copied(page):
    button = page.get_by_role("button", name="copy the command").first
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    button.click()
    expect(page.get_by_role("button", name=PLACE["command"])).to_have_count(1)
    assert page.evaluate("() => String(getSelection())") == PLACE["command"]
    page.evaluate("() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; }")
    page.get_by_role("button", name="copy the command").first.click()
    expect(page.get_by_role("button", name="copied")).to_have_count(1)
    assert page.evaluate("() => window.copied") == PLACE["command"]
    expect(page.get_by_role("button", name="copied")).to_have_count(0)
