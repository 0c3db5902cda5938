"""Fixtures that every room's tests share: small real architectures, a small real tokenizer, one real model."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch: two torch processes that spin while waiting starve each other on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

import lens
from tests.models.families import build, word_tokenizer


def pytest_configure(config: pytest.Config) -> None:
    """With -n one core for each worker and what it starts, told before they start: numpy reads it when it is loaded."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """Folder of the real language model, fetched once into the user's cache."""
    from lens.models.fetch import pull

    return pull("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Path):
    """SmolLM2-135M-Instruct, float32, on the CPU."""
    return lens.load("smollm2-135m", device="cpu")


@pytest.fixture(scope="session")
def tokenizer():
    """A word tokenizer over the tiny models' vocabulary."""
    return word_tokenizer()


@pytest.fixture
def tiny(tokenizer):
    """A fresh random Llama with a tokenizer."""
    return lens.load(build("llama"), tokenizer)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
