"""Models of which some blocks lie on disk or elsewhere in memory, as `device_map` places them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM

import lens
from lens.base.errors import UnsupportedModelError
from lens.models.offload import stored_weight
from tests.models.families import build, word_tokenizer

ON_DISK = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
ON_DISK |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "tiny-llama"
    build("llama").save_pretrained(place)
    word_tokenizer().save_pretrained(place)
    return place


def on_disk(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, device_map=ON_DISK, offload_folder=folder / "offload")


def elsewhere_in_memory(folder: Path, keep: dict[str, torch.Tensor] | None = None) -> Any:
    """Its blocks' weights in a table beside the module, as they are when a GPU computes with them."""
    module = AutoModelForCausalLM.from_pretrained(folder)
    for number, block in enumerate(module.model.layers):
        table = {name: value.clone() for name, value in block.state_dict().items()}
        (keep if keep is not None else {}).update({f"{number}.{name}": value for name, value in table.items()})
        accelerate.cpu_offload(block, torch.device("cpu"), state_dict=table)
    return module


def written_to_disk(folder: Path) -> Any:
    """Its blocks' weights in files of accelerate's own, one for each."""
    module = AutoModelForCausalLM.from_pretrained(folder)
    for number, block in enumerate(module.model.layers):
        accelerate.disk_offload(block, str(folder / f"offload-{number}"), torch.device("cpu"))
    return module


@pytest.mark.parametrize("place", [on_disk, elsewhere_in_memory, written_to_disk])
def test_offloaded_weights_are_the_same_model(folder: Path, place: Any):
    """The same logits and the same fingerprint, so that what was fitted with the one belongs to the other."""
    module, plain = place(folder), lens.load(folder)
    assert any(weight.is_meta for weight in module.parameters())
    model = lens.load(module, plain.tokenizer)
    assert torch.equal(model.run("w1 w2 w3").logits, plain.run("w1 w2 w3").logits)
    assert torch.equal(model.run("w1 w2 w3").residual, plain.run("w1 w2 w3").residual)
    assert model.fingerprint == plain.fingerprint == model.fingerprint


def test_loading_with_a_device_map_gives_the_same_model(folder: Path):
    model, plain = lens.load(folder, device_map=ON_DISK), lens.load(folder)
    assert any(weight.is_meta for weight in model.module.parameters())
    assert model.fingerprint == plain.fingerprint


def test_fingerprint_follows_a_file_on_disk(folder: Path):
    model = lens.load(on_disk(folder), word_tokenizer())
    before, path = model.fingerprint, folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    size = struct.unpack("<Q", content[:8])[0]
    start = json.loads(content[8 : 8 + size])["model.layers.2.mlp.up_proj.weight"]["data_offsets"][0]
    content[8 + size + start + 2] ^= 1
    path.write_bytes(content)
    assert model.fingerprint != before


def test_fingerprint_follows_a_table_in_memory(folder: Path):
    kept: dict[str, torch.Tensor] = {}
    model = lens.load(elsewhere_in_memory(folder, kept), word_tokenizer())
    before = model.fingerprint
    kept["1.input_layernorm.weight"][3] += 1
    assert model.fingerprint != before


def test_a_weight_without_values_is_refused():
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(UnsupportedModelError, match=r"The weight 0\.bias has no values"):
        stored_weight(module, "0.bias")
