"""How nbval compares the notebooks: pictures of the page and plotly's own JSON are not text to compare."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SKIPPED = ("text/html", "application/vnd.plotly.v1+json", "image/svg+xml")


def pytest_configure(config: pytest.Config) -> None:
    """With -n one core for each worker and its kernels, told before they start: numpy reads it when it is loaded."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collectstart(collector: pytest.Collector) -> None:
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += SKIPPED
