"""A cache of its own for every test, and passes that write their state often."""

from __future__ import annotations

from pathlib import Path

import pytest

from lens.collect import MomentParts
from tests.collect.passes import long_pass, write_often


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def long_pass_moments(tmp_path_factory: pytest.TempPathFactory) -> MomentParts:
    """What the long pass gives where nothing disturbs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_CACHE", str(tmp_path_factory.mktemp("undisturbed")))
        write_often(patch.setattr)
        return long_pass()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches, flushed and written often."""
    write_often(monkeypatch.setattr)
