"""A real Chromium, a real JupyterLab with the shipped notebooks, and a notebook that has been run in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.browser.lab import Lab, MissingError, chromium, jupyterlab

try:
    from playwright import sync_api
except ImportError:  # each test module skips itself and says so
    sync_api = None

ROOT = Path(__file__).parents[2]
ARTEFACTS = ROOT / "artefacts"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[sync_api.Browser]:
    with ExitStack() as stack:
        try:
            browser = stack.enter_context(chromium())
        except MissingError as missing:
            pytest.skip(str(missing))
        yield browser


# -- pages ----------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A page, the addresses it asked for outside this machine, and what it complained of."""

    page: sync_api.Page
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.route("**/*", self._local_only)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._listen)

    def _local_only(self, route: sync_api.Route) -> None:
        local = route.request.url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:"))
        if not local:
            self.outside.append(route.request.url)
        route.continue_() if local else route.abort()

    def _listen(self, message: sync_api.ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(f"{message.text} ({message.location.get('url')})")


@pytest.fixture
def watched(browser) -> Iterator[Watched]:
    """A fresh page."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        yield Watched(context.new_page())


# -- JupyterLab -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory) -> Iterator[Lab]:
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    with jupyterlab(home) as lab:
        yield lab


@pytest.fixture(scope="session")
def keep() -> Callable[[sync_api.Page, str], Path]:
    """Save a screenshot for people to look at."""
    ARTEFACTS.mkdir(exist_ok=True)

    def save(page: sync_api.Page, name: str) -> Path:
        page.screenshot(path=ARTEFACTS / name)
        return ARTEFACTS / name

    return save
