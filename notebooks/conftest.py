"""How nbval compares the notebooks: pictures of the page and plotly's own JSON are not text to compare."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SKIPPED = ("text/html", "application/vnd.plotly.v1+json", "image/svg+xml")


def pytest_collectstart(collector: pytest.Collector) -> None:
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += SKIPPED
