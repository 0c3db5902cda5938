"""Datasets to draw: of a small random model, the same with hostile token texts, and one with a known course of events."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lens
from lens.base.text import storable
from tests.base.hostile import HOSTILE
from tests.models.families import build, word_tokenizer


@pytest.fixture(scope="package")
def model():
    return lens.Model(build("llama"), word_tokenizer(), name="tiny")


@pytest.fixture(scope="package")
def _read(model) -> xr.Dataset:
    return lens.logit_lens(model.run("w1 w2 w3 w4 w5 w6"))


@pytest.fixture
def dataset(_read) -> xr.Dataset:
    """Layers 0..3 and six positions of a random model."""
    return _read.copy(deep=True)


@pytest.fixture(scope="package")
def _hostile(model) -> xr.Dataset:
    read = lens.logit_lens(model.run([i % 100 + 4 for i in range(len(HOSTILE))]))
    texts = [storable(text) for text in HOSTILE]
    layers, positions, ranks = read.token.shape
    places = np.add.outer(np.add.outer(np.arange(layers), np.arange(positions)), np.arange(ranks)) % len(texts)
    read["token_id"] = read.token_id.copy(data=places.astype(np.int32))
    read["token"] = read.token.copy(data=np.array(texts, dtype=object)[places])
    read["input_id"] = read.input_id.copy(data=np.arange(positions, dtype=np.int32))
    read["input_token"] = read.input_token.copy(data=np.array(texts, dtype=object))
    read.attrs |= {"prompt": "".join(texts), "model": "</title><b>$\\frac$ & co"}
    return read


@pytest.fixture
def hostile(_hostile) -> xr.Dataset:
    """Every hostile text as a token of the prompt and as a prediction at every rank."""
    return _hostile.copy(deep=True)


@pytest.fixture
def story(dataset) -> xr.Dataset:
    """Three positions whose answers are known, as ids and as words `w<id>`.

    After 10 every layer says 11, which is true. After 11 the layers say 12, 13, 12, 13, the text goes on
    with 12. After 12 the layers say 90, 91, 92, 93.
    """
    known = dataset.isel(position=[0, 1, 2]).copy(deep=True)
    first = np.array([[11, 12, 90], [11, 13, 91], [11, 12, 92], [11, 13, 93]], dtype=np.int32)
    known["token_id"][:, :, 0] = first
    known["token"] = known.token.copy(data=np.char.add("w", known.token_id.to_numpy().astype(str)).astype(object))
    known["input_id"] = known.input_id.copy(data=np.array([10, 11, 12], dtype=np.int32))
    known["input_token"] = known.input_token.copy(data=np.array(["w10", "w11", "w12"], dtype=object))
    known["settled_layer"] = known.settled_layer.copy(data=np.array([0, 3, 3], dtype=np.int32))
    known["first_correct_layer"] = known.first_correct_layer.copy(data=np.array([0, 0, np.nan], dtype=np.float32))
    return known
