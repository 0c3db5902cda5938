"""Models that come with the package: opened by name and without a network, and they are what their records say."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import InputError, ModelNotFoundError
from lens.base.files import sha256
from lens.models.catalogue import named_model
from lens.models.shipped import shipped_models, shipped_record
from lens.models.three_phase import PhaseRotation
from lens.training.phase_recipes import FAMILY, phase_recipe
from lens.training.shipping import LARGEST, WEIGHTS
from lens.training.subwords import HeldOut, SubwordText, window_losses
from lens.training.three_phase import TEST_DOCUMENTS, TEST_WINDOWS

SHIPPED = shipped_models()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_the_family_and_a_deep_model_are_shipped():
    assert set(SHIPPED) == {*FAMILY, "three-phase-12-blocks"}
    assert sum((folder / WEIGHTS).stat().st_size for folder in SHIPPED.values()) <= LARGEST


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_are_those_of_the_record(name: str):
    record = shipped_record(name)
    assert sha256(SHIPPED[name] / WEIGHTS) == record["weights_sha256"]
    assert record["command"] == f"lens train {name} --seed 0"
    recipe = phase_recipe(name)
    assert record["recipe"] == {**recipe.training.facts(), "seed": 0}
    assert record["source"]["model"] == dict(recipe.model)
    settings = lens.load(name).module.config.to_dict()
    told = recipe.config().to_dict()
    assert {field: settings[field] for field in recipe.model} == {field: told[field] for field in recipe.model}


def test_opened_by_name_without_a_network_and_once(no_network):
    model = lens.load("three-phase-n3")
    assert lens.load("three-phase-n3") is model
    assert (model.name, model.dtype_name) == ("three-phase-n3", "float32")
    assert model.revision == shipped_record("three-phase-n3")["weights_sha256"][:12]
    assert "three-phase-n3" in repr(model)
    assert lens.load("three-phase-n3", dtype="bfloat16") is not model


def test_name_and_folder_are_one_model():
    """A folder has another name, and the tokenizer above it."""
    folder = SHIPPED["three-phase-n3"]
    by_folder, by_name = lens.load(folder), lens.load("three-phase-n3")
    assert by_folder.fingerprint == by_name.fingerprint
    assert by_folder.encode("What is a phase?") == by_name.encode("What is a phase?")


def test_text_becomes_tokens_and_comes_back():
    model = lens.load("three-phase-n3")
    text = "The Eiffel Tower, naïve: 塔"
    ids = model.encode(text)
    assert model.tokenizer.decode(ids) == text
    assert max(ids) < model.vocab_size == len(model.tokenizer) == 1024


def test_angles_keep_the_digits_that_bfloat16_would_drop():
    model = lens.load("three-phase-n3")
    angles = [part.theta for part in model.module.modules() if isinstance(part, PhaseRotation)]
    assert len(angles) == model.n_layers
    assert all((angle != angle.to(torch.bfloat16)).any() for angle in angles)
    assert torch.equal(model.anatomy.head.weight, model.anatomy.head.weight.to(torch.bfloat16))


def test_a_name_that_is_nearly_one_names_the_nearest():
    with pytest.raises(ModelNotFoundError, match=r"No model 'three-phase-no-hron'.*lens.load\('three-phase-no-horn'\)"):
        lens.load("three-phase-no-hron")
    with pytest.raises(InputError, match="A revision .main. of three-phase-n3"):
        lens.load("three-phase-n3", revision="main")
    with pytest.raises(ModelNotFoundError, match=r"three-phase-n3 comes with the package.*lens.load\('three-phase-n3'\)"):
        named_model("three-phase-n3")


@pytest.fixture(scope="module")
def held() -> HeldOut:
    """Articles that no model was trained on, as the one tokenizer cuts them."""
    articles, source = lens.corpus("wikipedia"), shipped_record("three-phase-n3")["source"]
    assert articles.digest == source["corpus_hashes"][source["corpora"].index("wikipedia")]
    text = SubwordText((articles,), lens.load("three-phase-n3").tokenizer, np.zeros(0, np.uint16), "")
    return text.held_out("test", articles, source["length"], TEST_DOCUMENTS, TEST_WINDOWS)


@pytest.mark.parametrize("name", SHIPPED)
def test_recorded_loss_is_that_of_the_shipped_weights(name: str, held: HeldOut):
    model, record = lens.load(name), shipped_record(name)
    with torch.no_grad():
        losses = torch.cat([window_losses(model.module, part).double() for part in held.windows.split(32)])
    found = float(np.mean(held.by_document(losses)))
    assert found == pytest.approx(record["results"]["saved_test_loss"]["wikipedia"], abs=1e-4)
    # Rounding the weights to bfloat16 moves the loss, and by little.
    assert found == pytest.approx(record["results"]["test_loss"]["wikipedia"], abs=0.005)


def test_every_shipped_model_has_its_tokenizer_once():
    (root,) = {folder.parent for folder in SHIPPED.values()}
    assert sorted(path.relative_to(root) for path in root.rglob("tokenizer*")) == [
        Path("tokenizer.json"),
        Path("tokenizer_config.json"),
    ]
