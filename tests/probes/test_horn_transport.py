"""Where the horn is after each block: along what the rotations turn its direction into, as long as nothing else is written."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import InputError, UnsupportedModelError
from lens.corpora import Document
from lens.models.three_phase import ThreePhaseConfig, ThreePhaseForCausalLM
from lens.probes.horn_transport import horn_transport, horn_verdicts
from tests.models.families import build
from tests.probes.test_phase_turn import TINY, silent


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    random = np.random.default_rng(0)
    return [Document(" ".join(f"w{i}" for i in random.integers(0, 60, 40))) for n in range(3)]


def made(phases: int, tokenizer, quiet: bool = True) -> lens.Model:
    torch.manual_seed(0)
    module = ThreePhaseForCausalLM(ThreePhaseConfig(**{**TINY, "vocab_size": 128}, num_phases=phases)).double().eval()
    return lens.load(silent(module) if quiet else module, tokenizer)


def test_rotations_alone_carry_the_horn_along(documents, tokenizer):
    found = horn_transport(made(3, tokenizer), documents, tokens=30)
    assert found.sizes == {"document": 3, "layer": 5, "direction": 2}
    np.testing.assert_allclose(found.horn_fit.sel(direction="transported"), 1, atol=1e-9)
    np.testing.assert_allclose(found.horn_fit.sel(layer=0), 1, atol=1e-9)
    # Overall mean that is left of a horn of one, four blocks: the phases are in step after the third.
    np.testing.assert_allclose(found.alignment, [1, 0, 0, -math.sqrt(0.5), 0], atol=1e-9)
    stays, carried = horn_verdicts(found)
    assert (carried["value"], carried["verdict"]) == (1.0, "holds")
    assert stays["verdict"] != "holds"


def test_one_phase_keeps_a_part(documents, tokenizer):
    alignment = horn_transport(made(1, tokenizer), documents, tokens=30).alignment
    np.testing.assert_allclose(alignment, [1, 0.9239, 0.3827, -0.7071, -0.7071], atol=5e-5)


def test_blocks_write_over_it(documents, tokenizer):
    found = horn_transport(made(3, tokenizer, quiet=False), documents, tokens=30)
    assert (found.horn_fit.sel(direction="transported", layer=4) < 0.999).all()


def test_refused(documents, tokenizer):
    with pytest.raises(UnsupportedModelError, match="transports no horn"):
        horn_transport(lens.load(build("llama"), tokenizer), documents, tokens=30)
    with pytest.raises(InputError, match="0 documents"):
        horn_transport(made(3, tokenizer), documents, tokens=60)
