"""Moments add up, and stay exact where plain float32 sums do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens.base.errors import InputError
from lens.moments import Accumulator, Moments, outlier_limits, residual_pairs

LAYERS, WIDTH = 3, 5
PAIRS = ((0, 1), (0, 2), (1, 2))


def gather(states: torch.Tensor, flush_every: int = 64, shift: torch.Tensor | None = None, batch: int = 10) -> Moments:
    """Moments of `[layer, token, d]`, taken in batches of so many tokens."""
    start = torch.zeros(LAYERS, states.shape[-1]) if shift is None else shift
    limits = torch.full((LAYERS,), torch.inf)
    options = {"drop_first": False, "source": {"a": 1}, "shuffled": PAIRS[:1], "flush_every": flush_every}
    into = Accumulator(start, limits, PAIRS, **options)
    for piece in states.split(batch, dim=1):
        into.add(piece[:, None].clone())
    into.flush()
    return into.moments


def by_hand(states: torch.Tensor) -> dict[tuple[int, int], np.ndarray]:
    x = states.double().numpy()
    centred = x - x.mean(1, keepdims=True)
    return {(i, j): centred[i].T @ centred[j] for i in range(LAYERS) for j in range(i, LAYERS)}


def errors(found: Moments, states: torch.Tensor) -> np.ndarray:
    """`[matrix, d, d]`, as shares of what the two coordinates could reach: a large coordinate hides no other."""
    expected = by_hand(states)
    scales = [np.sqrt(expected[i, i].diagonal()) for i in range(LAYERS)]
    values = {(i, i): value for i, value in found.within.items()} | dict(found.across)
    return np.stack([np.abs((v.numpy() - expected[i, j]) / np.outer(scales[i], scales[j])) for (i, j), v in values.items()])


def same(left: Moments, right: Moments, relative: float) -> bool:
    pairs = [(left.mean, right.mean), *((left.across[p], right.across[p]) for p in PAIRS)]
    pairs += [(left.within[i], right.within[i]) for i in range(LAYERS)]
    pairs += [(left.shuffled[p], right.shuffled[p]) for p in PAIRS[:1]]
    return left.count == right.count and all((a - b).norm() <= relative * b.norm().clamp(min=1e-9) for a, b in pairs)


@pytest.mark.parametrize("flush_every", [1, 7, 64, 10_000])
def test_equal_to_scatter_matrices_however_they_are_gathered(flush_every: int):
    states = torch.randn(LAYERS, 230, WIDTH)
    found, expected = gather(states, flush_every), by_hand(states)
    assert found.count == 230
    assert torch.allclose(found.mean, states.double().mean(1), atol=1e-6)
    for i in range(LAYERS):
        assert np.linalg.norm(found.within[i].numpy() - expected[i, i]) <= 1e-6 * np.linalg.norm(expected[i, i])
    for pair in PAIRS:
        assert np.linalg.norm(found.across[pair].numpy() - expected[pair]) <= 1e-6 * np.linalg.norm(expected[pair])


def test_a_large_mean_does_no_harm_when_the_shift_is_near_it():
    """Offset 100 with scales down to 1: uncentred float32 sums would be off by more than 1e-3."""
    scales = torch.logspace(0, 2, WIDTH)
    states = 100 + torch.randn(LAYERS, 5000, WIDTH) * scales
    found, expected = gather(states, 1000, shift=torch.full((LAYERS, WIDTH), 100.0)), by_hand(states)
    for pair in PAIRS:
        assert np.abs(found.across[pair].numpy() - expected[pair]).max() <= 1e-6 * np.abs(expected[1, 1]).max()


def test_massive_states_that_are_left_in_cost_no_other_coordinate_a_digit():
    """Two tokens of norm 10,000, as the first position often has, and coordinates whose scales span six decades."""
    scales = torch.logspace(-3, 3, 64)
    states = torch.randn(LAYERS, 6000, 64) * scales + 3 * scales
    states[1:, [0, 4321], 2] = 1e4
    found = errors(gather(states, 8192, shift=states[:, :512].mean(1), batch=2048), states)
    assert found[:, 2, 2].max() < 1e-5
    found[:, 2, 2] = 0
    assert found.max() < 1e-6


@pytest.mark.parametrize("width", [1, 2, 3, 7, 33])
def test_every_width_is_multiplied_whole(width: int):
    """The upper half of every symmetric product is mirrored; with an odd width the halves differ, with 1 one is empty."""
    states = torch.randn(LAYERS, 500, width) + 0.5
    found = gather(states, 128)
    assert errors(found, states).max() < 1e-6
    for value in found.within.values():
        assert torch.allclose(value, value.T, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_states_of_any_dtype_are_summed_as_float32(dtype: torch.dtype):
    states = torch.randn(LAYERS, 2500, 64).to(dtype)
    kept = states.clone()
    assert errors(gather(states, 8192, batch=2048), states).max() < 1e-6
    assert torch.equal(states, kept)


PRECISIONS = (
    "torch.set_float32_matmul_precision('medium')",
    "torch.set_float32_matmul_precision('high')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.backends.fp32_precision = 'tf32'",
)


@pytest.fixture
def restored_precision() -> Iterator[None]:
    yield
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


def precisions() -> list[str]:
    """All that can be read of the settings; a mixture of old and new ones cannot."""
    found = [
        torch.backends.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
    ]
    try:
        return [*found, torch.get_float32_matmul_precision()]
    except RuntimeError:
        return found


@pytest.mark.usefixtures("restored_precision")
@pytest.mark.parametrize("setting", PRECISIONS)
def test_precision_that_the_user_set_is_neither_used_nor_changed(setting: str):
    """Products of 256 × 2048 numbers, which oneDNN multiplies in bfloat16 if it may and can."""
    states = torch.randn(LAYERS, 2048, 256)

    def moments() -> Moments:
        into = Accumulator(torch.zeros(LAYERS, 256), torch.full((LAYERS,), torch.inf), PAIRS, drop_first=False, source={})
        into.add(states[:, None].clone())
        into.flush()
        return into.moments

    expected = moments()
    exec(setting)
    before, lowered = precisions(), states[0].T @ states[1]
    found = moments()
    assert precisions() == before
    assert torch.equal(states[0].T @ states[1], lowered)
    for pair in PAIRS:
        assert torch.equal(found.across[pair], expected.across[pair])
    for layer in range(LAYERS):
        assert torch.equal(found.within[layer], expected.within[layer])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_states_that_cannot_be_summed_are_refused(value: float):
    states = torch.randn(LAYERS, 100, WIDTH)
    states[2, 50, 1] = value
    with pytest.raises(InputError, match=r"Among \d+ tokens are states that are not finite, or too large.*float32"):
        gather(states)


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 40), min_size=3, max_size=3), seed=st.integers(0, 2**31))
def test_merging_is_associative_and_commutative(sizes: list[int], seed: int):
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (gather(torch.randn(LAYERS, n, WIDTH, generator=generator) * 3 + 1) for n in sizes)
    assert same((a + b) + c, a + (b + c), 1e-12)
    assert same(a + b, b + a, 1e-12)


def test_merging_equals_one_pass_over_everything():
    states = torch.randn(LAYERS, 300, WIDTH) + 2
    parts = [gather(piece) for piece in states.split(70, dim=1)]
    merged, whole = sum(parts[1:], parts[0]), gather(states)
    assert same(replace(merged, shuffled=whole.shuffled), whole, 1e-6)  # who is whose partner depends on the batches


def test_nothing_is_neutral():
    some = gather(torch.randn(LAYERS, 50, WIDTH))
    options = {"drop_first": False, "source": {"a": 1}, "shuffled": PAIRS[:1]}
    empty = Accumulator(torch.zeros(LAYERS, WIDTH), some.limits.float(), PAIRS, **options).moments
    assert same(some + empty, some, 0.0)
    assert same(empty + some, some, 0.0)


@pytest.mark.parametrize(
    ("word", "options"),
    [
        ("limits", {"limits": torch.ones(LAYERS)}),
        ("pairs", {"pairs": PAIRS[:2]}),
        ("pairs", {"shuffled": PAIRS[1:2]}),
        ("pairs", {"shuffled": ()}),
        ("source", {"source": {"a": 2}}),
    ],
)
def test_merging_refuses_other_limits_pairs_and_sources(word: str, options: dict[str, Any]):
    some = gather(torch.randn(LAYERS, 50, WIDTH))
    usual = {"limits": some.limits.float(), "pairs": PAIRS, "drop_first": False, "source": {"a": 1}, "shuffled": PAIRS[:1]}
    other = Accumulator(torch.zeros(LAYERS, WIDTH), **{**usual, **options}).moments
    with pytest.raises(InputError, match=word):
        _ = some + other


# -- shuffled pairs -------------------------------------------------------------------------------

TEXTS, POSITIONS = 6, 9
TOKENS = TEXTS * POSITIONS


def one_batch(states: torch.Tensor, source: int = 0) -> Moments:
    """Moments of `[2, text, position, d]` without the first positions, in one batch, a shuffled pair among them."""
    limits = torch.full((2,), torch.inf)
    options = {"drop_first": True, "source": {"part": source}, "shuffled": [(0, 1)]}
    into = Accumulator(torch.zeros(2, states.shape[-1]), limits, [(0, 1)], **options)
    into.add(states.clone())
    into.flush()
    return into.moments


def partners(source: int = 0) -> dict[int, int]:
    """Which token stands beside which: every token has a coordinate of its own, so that the sums show it."""
    found = one_batch(torch.eye(TOKENS).reshape(1, TEXTS, POSITIONS, TOKENS).expand(2, -1, -1, -1), source)
    kept = [token for token in range(TOKENS) if token % POSITIONS]
    together = (found.shuffled[0, 1] + 1 / len(kept))[kept][:, kept]
    assert torch.allclose(together, together.round(), atol=1e-6)
    assert torch.equal(together.round().sum(0), torch.ones(len(kept), dtype=torch.float64))
    assert torch.equal(together.round().sum(1), torch.ones(len(kept), dtype=torch.float64))
    return {token: kept[int(row.argmax())] for token, row in zip(kept, together, strict=True)}


def test_shuffled_partners_come_from_another_text_and_any_position():
    found = partners()
    assert len(found) == TEXTS * (POSITIONS - 1)
    assert all(token // POSITIONS != other // POSITIONS for token, other in found.items())
    apart = {(other - token) % POSITIONS for token, other in found.items()}
    assert len(apart) == POSITIONS
    assert partners() == found
    assert partners(source=1) != found


def test_shuffled_moments_are_those_of_the_partners():
    states = torch.randn(2, TEXTS, POSITIONS, WIDTH) + 3
    pairs = list(partners().items())
    x, y = (states[layer].flatten(0, 1).double().numpy()[[pair[layer] for pair in pairs]] for layer in (0, 1))
    expected = (x - x.mean(0)).T @ (y - y.mean(0))
    found = one_batch(states)
    assert np.abs(found.shuffled[0, 1].numpy() - expected).max() < 1e-4
    assert np.abs(found.across[0, 1].numpy() - expected).max() > 1


def test_shuffled_moments_merge_as_those_of_all_partners_together():
    first, second = torch.randn(2, TEXTS, POSITIONS, WIDTH), torch.randn(2, TEXTS, POSITIONS, WIDTH) * 2 + 5
    pairs = list(partners().items())
    x, y = (
        np.concatenate([s[layer].flatten(0, 1).double().numpy()[[pair[layer] for pair in pairs]] for s in (first, second)])
        for layer in (0, 1)
    )
    expected = (x - x.mean(0)).T @ (y - y.mean(0))
    found = (one_batch(first) + one_batch(second)).shuffled[0, 1].numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_position_alone_gives_shuffled_moments_nothing():
    """States that are nothing but their position: partners at one position, or at a fixed distance, would be no noise."""
    places = torch.randn(64, WIDTH)
    into = Accumulator(
        torch.zeros(2, WIDTH), torch.full((2,), torch.inf), [(0, 1)], drop_first=True, source={}, shuffled=[(0, 1)]
    )
    for _ in range(40):
        into.add(places.expand(2, 8, 64, WIDTH).clone())
    into.flush()
    signal, noise = into.moments.across[0, 1].norm(), into.moments.shuffled[0, 1].norm()
    assert noise < 5 / into.moments.count**0.5 * signal


@pytest.mark.parametrize("texts", [1, 2, 3])
def test_few_texts_still_give_every_token_another_as_its_partner(texts: int):
    size = texts * 16
    states = torch.eye(size).reshape(1, texts, 16, size).expand(2, -1, -1, -1).clone()
    into = Accumulator(
        torch.zeros(2, size), torch.full((2,), torch.inf), [(0, 1)], drop_first=False, source={}, shuffled=[(0, 1)]
    )
    into.add(states)
    into.flush()
    together = (into.moments.shuffled[0, 1] + 1 / size).round()
    assert together.sum() == size
    for text in range(texts):
        own = together[text * 16 : (text + 1) * 16, text * 16 : (text + 1) * 16]
        assert own.diagonal().sum() == 0
        assert texts == 1 or own.sum() == 0


# -- masks ----------------------------------------------------------------------------------------


def test_robust_mask_drops_exactly_the_massive_token():
    """One row of one layer gets a huge coordinate: it alone is dropped, at every layer."""
    states = torch.randn(LAYERS, 400, WIDTH)
    states[1, 123, 2] += 150 * WIDTH**0.5
    limits = outlier_limits(states.norm(dim=-1), "robust")
    into = Accumulator(torch.zeros(LAYERS, WIDTH), limits, PAIRS, drop_first=False, source={})
    into.add(states[:, None].clone())
    into.flush()
    kept = [token for token in range(400) if token != 123]
    assert into.moments.dropped == {"first position": 0, "massive": 1}
    assert torch.allclose(into.moments.mean, states[:, kept].double().mean(1), atol=1e-6)


def test_first_positions_are_dropped_and_counted_apart():
    states = torch.randn(LAYERS, 4, 6, WIDTH)
    into = Accumulator(torch.zeros(LAYERS, WIDTH), torch.full((LAYERS,), torch.inf), PAIRS, drop_first=True, source={})
    into.add(states.clone())
    into.flush()
    assert into.moments.dropped == {"first position": 4, "massive": 0}
    assert into.moments.count == 20
    assert torch.allclose(into.moments.mean, states[:, :, 1:].double().flatten(1, 2).mean(1), atol=1e-6)


def test_pairs_by_word():
    assert residual_pairs(2, "adjacent") == ((0, 1), (1, 2))
    assert residual_pairs(2, "to_final") == ((0, 2), (1, 2))
    assert residual_pairs(2, "both") == ((0, 1), (0, 2), (1, 2))
    assert len(residual_pairs(30, "all")) == 31 * 30 / 2
    assert residual_pairs(3, [(1, 3), (0, 2)]) == ((0, 2), (1, 3))


@pytest.mark.parametrize("wrong", ["some", [(2, 2)], [(2, 1)], [(0, 9)], []])
def test_wrong_pairs_are_refused(wrong):
    with pytest.raises(InputError, match="pairs"):
        residual_pairs(3, wrong)
