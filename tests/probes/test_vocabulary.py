"""Statistics made tile by tile equal those of the whole distribution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lens.probes.vocabulary as vocabulary
from lens.base.errors import UnsupportedModelError
from lens.models.readout import LogitTransform, Readout
from lens.probes.vocabulary import TILE, vocabulary_statistics

LAYERS, POSITIONS, WIDTH, TOP = 4, 7, 24, 6


def make(vocab: int, *, bias: bool = True, transform: LogitTransform | None = None, scale: float = 10.0, dtype=torch.float32):
    head = nn.Linear(WIDTH, vocab, bias=bias, dtype=dtype)
    with torch.no_grad():
        head.weight.normal_(std=scale / WIDTH**0.5)
    readout = Readout((nn.RMSNorm(WIDTH, dtype=dtype),), head, transform or LogitTransform())
    states = torch.randn(LAYERS, POSITIONS, WIDTH, dtype=dtype)
    return readout, states, torch.randint(vocab, (POSITIONS,))


def by_hand(readout, states, targets):
    """The same from whole distributions in float64."""
    with torch.no_grad():
        logits = readout(states).double()
    logprob = logits.log_softmax(-1)
    final = logprob[-1]
    wanted = torch.stack([targets, logits[-1].argmax(-1)], dim=-1)[None].expand(LAYERS, -1, -1)
    chosen = logits.gather(-1, wanted)
    return {
        "top": logprob.topk(TOP),
        "entropy": -(logprob.exp() * logprob).sum(-1),
        "kl": (final.exp() * (final - logprob)).sum(-1),
        "target_logprob": logprob.gather(-1, wanted),
        "target_rank": 1 + (logits > chosen[..., :1]).sum(-1),
    }


@pytest.mark.parametrize("vocab", [50, TILE, TILE + 1, 3 * TILE + 17])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform("softcap", 20.0), LogitTransform("divide", 3.0)])
def test_equals_the_whole_distribution(vocab: int, transform: LogitTransform, bias: bool):
    case = make(vocab, transform=transform, bias=bias)
    with torch.no_grad():
        found = vocabulary_statistics(*case, TOP)
    expected = by_hand(*case)
    assert torch.equal(found.token_id, expected["top"].indices)
    assert torch.allclose(found.logprob.double(), expected["top"].values, atol=2e-5)
    assert torch.allclose(found.entropy.double(), expected["entropy"], atol=2e-5)
    assert torch.allclose(found.kl_to_final.double(), expected["kl"], atol=5e-5)
    assert torch.allclose(found.target_logprob.double(), expected["target_logprob"][..., 0], atol=2e-5)
    assert torch.allclose(found.answer_logprob.double(), expected["target_logprob"][..., 1], atol=2e-5)
    assert torch.equal(found.target_rank, expected["target_rank"])


@pytest.mark.parametrize("positions_at_once", [1, 3])
def test_chunking_changes_nothing(monkeypatch, positions_at_once: int):
    case = make(2 * TILE + 5)
    with torch.no_grad():
        whole = vocabulary_statistics(*case, TOP)
        monkeypatch.setattr(vocabulary, "BUFFER_BYTES", positions_at_once * LAYERS * (2 * TILE + 5) * 4)
        parts = vocabulary_statistics(*case, TOP)
    assert torch.equal(whole.token_id, parts.token_id)
    assert torch.equal(whole.target_rank, parts.target_rank)
    for name in ("logprob", "entropy", "kl_to_final", "target_logprob", "answer_logprob"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-6 * 60)


def test_given_logits_are_the_distribution_that_layers_are_compared_with():
    """Of another temperature, they are no longer what the last layer says."""
    readout, states, targets = make(3000)
    with torch.no_grad():
        logits = readout(states).double()
        final = (logits[-1] / 2).float()
        found = vocabulary_statistics(readout, states, targets, TOP, final)
    p = final.double().log_softmax(-1)
    cross = -(p.exp() * logits.log_softmax(-1)).sum(-1)
    assert torch.allclose(found.kl_to_final.double(), (cross - cross[-1]).clamp(min=0), atol=1e-4)


def test_states_without_finite_logits_are_refused_by_layer():
    readout, states, targets = make(300)
    states[2, 3] = torch.inf
    with torch.no_grad(), pytest.raises(UnsupportedModelError, match="Layer 2 gives logits that are not finite"):
        vocabulary_statistics(readout, states, targets, TOP)


def test_very_sure_and_very_unsure_cells_are_exact():
    """One token certain: entropy 0. All logits equal: entropy ln V, every rank 1."""
    readout, states, targets = make(2000, bias=True)
    with torch.no_grad():
        readout.head.weight.zero_()
        readout.head.bias.zero_()
        flat = vocabulary_statistics(readout, states, targets, 1)
        readout.head.bias[1234] = 500
        sharp = vocabulary_statistics(readout, states, targets, 1)
    assert torch.allclose(flat.entropy, torch.tensor(2000.0).log(), atol=1e-5)
    assert (flat.target_rank == 1).all()
    assert (sharp.entropy == 0).all()
    assert (sharp.token_id == 1234).all()
    assert (sharp.logprob == 0).all()


def test_logits_that_rise_tile_by_tile_do_not_overflow():
    readout, states, targets = make(3 * TILE)
    with torch.no_grad():
        readout.head.weight.zero_()
        readout.head.bias.copy_(torch.linspace(-300, 300, 3 * TILE))
        found = vocabulary_statistics(readout, states, targets, 2)
    assert found.entropy.isfinite().all()
    assert (found.token_id[..., 0] == 3 * TILE - 1).all()
    assert torch.equal(found.target_rank, (3 * TILE - targets).expand(LAYERS, -1))


def test_bfloat16_counts_ranks_over_the_numbers_it_shows():
    case = make(TILE + 3, dtype=torch.bfloat16)
    with torch.no_grad():
        found = vocabulary_statistics(*case, TOP)
        logits = case[0](case[1]).float()
    best = logits.gather(-1, found.token_id)
    assert torch.equal(best[..., 0], logits.amax(-1))
    chosen = logits.gather(-1, case[2][None, :, None].expand(LAYERS, -1, -1))
    assert torch.equal(found.target_rank, 1 + (logits > chosen[..., :1]).sum(-1))
