"""Attention operators have their closed forms, their published numbers and their defining failures."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lens.base.errors import InputError
from lens.models.log_normal_kernel import log_weights
from lens.models.operators import (
    OPERATORS,
    Alibi,
    AttentionInput,
    FirstToken,
    Identity,
    LogNormal,
    LowRank,
    Operator,
    PreviousToken,
    ReweightedSoftplus,
    Softmax,
    Softplus,
    Uniform,
    UniversalRelative,
    alibi_slopes,
    operator_name,
    weights,
)

HEADS, TOKENS, WIDTH = 3, 24, 16
CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()


def states(tokens: int = TOKENS, heads: int = HEADS, width: int = WIDTH, scale: float = 1.5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, queries and keys of Gaussian states, float64."""
    query, key = scale * torch.randn(2, heads, tokens, width, dtype=torch.float64)
    return query @ key.mT / math.sqrt(width), query, key


def causal(tokens: int) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()


def entropy(rows: Tensor) -> Tensor:
    return torch.special.entr(rows).sum(-1)


def of_toy(operator: Operator, tokens: int = 8) -> Tensor:
    """The pattern of an operator that needs no states."""
    zeros = torch.zeros(1, tokens, 1, dtype=torch.float64)
    return weights(operator, zeros @ zeros.mT, zeros, zeros, causal(tokens))[0]


# -- all of them ----------------------------------------------------------------------------------

STOCHASTIC = [name for name in OPERATORS if name not in ("universal relative", "low rank", "low rank, masked")]


@pytest.mark.parametrize("name", STOCHASTIC)
def test_rows_sum_to_one_over_what_is_seen(name: str):
    found = weights(OPERATORS[name](), *states(), CAUSAL)
    assert torch.allclose(found.sum(-1), torch.ones(HEADS, TOKENS, dtype=torch.float64), atol=1e-14)
    assert (found >= 0).all()
    assert not found[..., ~CAUSAL].any()


@pytest.mark.parametrize("name", OPERATORS)
def test_one_token_reads_itself(name: str):
    assert torch.allclose(weights(OPERATORS[name](), *states(1), causal(1)), torch.ones(HEADS, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize("name", OPERATORS)
def test_leading_axes_are_independent_texts(name: str):
    """Moment matching and singular values, too, know only their own text and head."""
    texts = [states() for _ in range(2)]
    together = weights(OPERATORS[name](), *(torch.stack(side) for side in zip(*texts, strict=True)), CAUSAL)
    for text, found in zip(texts, together, strict=True):
        assert torch.allclose(weights(OPERATORS[name](), *text, CAUSAL), found, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_float32_is_kept_and_near_float64(name: str):
    exact = states()
    found = weights(OPERATORS[name](), *(side.float() for side in exact), CAUSAL)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), weights(OPERATORS[name](), *exact, CAUSAL), atol=2e-5)


@pytest.mark.parametrize(
    "name", [name for name in OPERATORS if name not in ("log-normal", "log-normal + diagonal", "low rank", "low rank, masked")]
)
def test_the_last_queries_alone_give_the_last_rows(name: str):
    logits, query, key = states()
    whole = weights(OPERATORS[name](), logits, query, key, CAUSAL)
    last = weights(OPERATORS[name](), logits[:, -5:], query[:, -5:], key, CAUSAL[-5:])
    assert torch.allclose(last, whole[:, -5:], atol=1e-14)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_query_that_sees_nothing_reads_nothing(name: str):
    seen = CAUSAL.clone()
    seen[3] = False
    found = weights(OPERATORS[name](), *states(), seen)
    assert found[:, 3].abs().max() < 1e-15
    assert found[:, 4].any()


def test_names_and_parameters_are_told():
    assert repr(Softmax(0.5)) == "Softmax(temperature=0.5)"
    assert repr(UniversalRelative(torch.ones(300))) == "UniversalRelative(c=[1, 1, 1, 1, … 300 in all], b=None)"
    assert "halved_every_32" in repr(OPERATORS["universal relative"]())
    assert [operator_name(make()) for make in OPERATORS.values()][:3] == [
        "softmax",
        "softplus (LSSA)",
        "re-weighted softplus (LSSAR)",
    ]
    assert operator_name(lambda given: given.logits) == "<lambda>"


# -- softmax and its kin --------------------------------------------------------------------------


def test_softmax_is_softmax_and_blind_to_a_rows_constant():
    logits, query, key = states()
    found = weights(Softmax(), logits, query, key, CAUSAL)
    assert torch.allclose(found, logits.masked_fill(~CAUSAL, -torch.inf).softmax(-1), atol=1e-15)
    shifted = logits + 100 * torch.randn(HEADS, TOKENS, 1, dtype=torch.float64)
    assert torch.allclose(weights(Softmax(), shifted, query, key, CAUSAL), found, atol=1e-12)


def test_temperature_goes_from_the_largest_logit_to_uniform():
    logits, query, key = states()
    cold = weights(Softmax(1e-4), logits, query, key, CAUSAL)
    assert torch.equal(cold.argmax(-1), logits.masked_fill(~CAUSAL, -torch.inf).argmax(-1))
    assert cold.amax(-1).min() > 1 - 1e-9
    hot = weights(Softmax(1e9), logits, query, key, CAUSAL)
    assert torch.allclose(hot, weights(Uniform(), logits, query, key, CAUSAL), atol=1e-8)


def test_a_sink_takes_its_share_of_softmax_alone():
    logits, query, key = states()
    sinks = torch.tensor([-2.0, 0.0, 3.0])
    told = weights(Softmax(2.0), logits, query, key, CAUSAL, sinks)
    columns = torch.cat([logits.masked_fill(~CAUSAL, -torch.inf), sinks.double()[:, None, None].expand(-1, TOKENS, 1)], -1)
    assert torch.allclose(told, (columns / 2).softmax(-1)[..., :-1], atol=1e-15)
    for operator in (Softplus(), ReweightedSoftplus(), LogNormal(), Uniform(), Identity()):
        assert torch.equal(weights(operator, logits, query, key, CAUSAL, sinks), weights(operator, logits, query, key, CAUSAL))


def test_alibi_is_a_bias_by_distance():
    logits, query, key = states()
    slopes = torch.tensor([0.5, 0.1, 0.0], dtype=torch.float64)
    offset = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    expected = (logits - slopes[:, None, None] * offset).masked_fill(~CAUSAL, -torch.inf).softmax(-1)
    assert torch.allclose(weights(Alibi(slopes), logits, query, key, CAUSAL), expected, atol=1e-14)


def test_the_published_slopes_of_alibi():
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(16)[:2] == [2**-0.5, 2**-1]
    assert alibi_slopes(12) == [*alibi_slopes(8), 2 ** (-0.5), 2 ** (-1.5), 2 ** (-2.5), 2 ** (-3.5)]
    assert alibi_slopes(1) == [2.0**-8]


def test_a_right_stochastic_operator_cannot_tell_identical_tokens_apart_and_urpe_can():
    """The limitation that arXiv 2205.13401 names: with the same value everywhere, every row gives that value."""
    row = torch.randn(1, 1, WIDTH, dtype=torch.float64)
    query, value = (row.expand(HEADS, TOKENS, WIDTH) for _ in range(2))
    logits, bias = query @ query.mT, torch.randn(TOKENS, dtype=torch.float64)
    spread = {}
    for name, operator in {
        "softmax": Softmax(),
        "biases": UniversalRelative(torch.ones(TOKENS), b=bias),
        "alibi": Alibi(),
        "urpe": UniversalRelative(torch.randn(TOKENS, dtype=torch.float64), b=bias),
    }.items():
        output = weights(operator, logits, query, query, CAUSAL) @ value
        spread[name] = float((output - output[:, :1]).abs().max())
    assert max(spread["softmax"], spread["biases"], spread["alibi"]) < 4e-15
    assert spread["urpe"] > 0.1


def test_urpe_of_one_head_is_that_heads_own():
    logits, query, key = states()
    c = torch.rand(HEADS, TOKENS, dtype=torch.float64)
    whole = weights(UniversalRelative(c, b=-c), logits, query, key, CAUSAL)
    for head in range(HEADS):
        one = slice(head, head + 1)
        alone = weights(UniversalRelative(c[head], b=-c[head]), logits[one], query[one], key[one], CAUSAL)
        part = UniversalRelative(c, b=-c)(AttentionInput(logits[one], query[one], key[one], CAUSAL, heads=(head,), n_heads=HEADS))
        assert torch.equal(alone, whole[one])
        assert torch.equal(part, whole[one])


def test_low_rank_is_the_best_approximation_and_looks_ahead():
    logits, query, key = states()
    pattern = weights(Softmax(), logits, query, key, CAUSAL)
    values = torch.linalg.svdvals(pattern)
    found = weights(LowRank(4), logits, query, key, CAUSAL)
    assert torch.linalg.svdvals(found)[:, 4:].max() < 1e-14
    assert torch.allclose((found - pattern).norm(dim=(-2, -1)), values[:, 4:].norm(dim=-1), atol=1e-13)  # Eckart and Young
    assert found[..., ~CAUSAL].abs().max() > 0.01
    masked = weights(LowRank(4, masked=True), logits, query, key, CAUSAL)
    assert not masked[..., ~CAUSAL].any()
    assert torch.equal(masked[..., CAUSAL], found[..., CAUSAL])
    assert torch.linalg.svdvals(masked)[:, 4].min() > 1e-3  # of a higher rank again
    assert torch.allclose(weights(LowRank(TOKENS), logits, query, key, CAUSAL), pattern, atol=1e-14)


# -- softplus -------------------------------------------------------------------------------------


def test_softplus_has_its_closed_form():
    logits, query, key = states(5, 1, 4)
    found = weights(Softplus(), logits, query, key, causal(5))[0]
    for m in range(5):
        cosines = [float(query[0, m] @ key[0, n] / query[0, m].norm() / key[0, n].norm()) for n in range(m + 1)]
        plus = [math.log1p(math.exp(math.log(4) * math.log(m + 1) * cosine)) for cosine in cosines]
        assert found[m, : m + 1].tolist() == pytest.approx([value / sum(plus) for value in plus], abs=1e-14)
    assert found[0].tolist() == [1, 0, 0, 0, 0]


def test_softplus_of_right_angles_is_ln_2_for_every_key_so_uniform():
    zeros = torch.zeros(1, TOKENS, WIDTH, dtype=torch.float64)
    found = weights(Softplus(), zeros @ zeros.mT, zeros, zeros, CAUSAL)
    assert torch.allclose(found[0], weights(Uniform(), zeros @ zeros.mT, zeros, zeros, CAUSAL)[0], atol=1e-16)


def test_softplus_never_gives_nothing_to_a_key_that_is_seen():
    """At the worst: opposite directions in a head of 128 and 4096 keys."""
    query = torch.nn.functional.one_hot(torch.zeros(1, 1, dtype=torch.int64), 128).float()
    key = -query.expand(1, 4096, 128).clone()
    key[:, ::2] *= -1
    found = weights(Softplus(), query @ key.mT, query, key, torch.ones(1, 4096, dtype=torch.bool))
    assert 0 < found.min() < 1e-15


@pytest.fixture(scope="module")
def last_rows() -> dict[str, Tensor]:
    """Entropies [nats] of the last row of 1024 tokens for random unit queries and keys of 64 dimensions."""
    torch.manual_seed(0)
    rows = 250
    query, key = torch.randn(rows, 1, 64), torch.randn(rows, 1024, 64)
    logits, seen = query @ key.mT, torch.ones(1, 1024, dtype=torch.bool)
    operators = {"uniform": Uniform(), "lssa": Softplus(), **{f"power {p}": ReweightedSoftplus(p) for p in (1, 3, 15)}}
    return {name: entropy(weights(operator, logits, query, key, seen)).flatten() for name, operator in operators.items()}


@pytest.mark.parametrize(
    ("operator", "expected", "spread"),
    [("lssa", 6.22, 0.02), ("power 1", 5.56, 0.03), ("power 3", 4.56, 0.10), ("power 15", 1.28, 0.58)],
)
def test_re_weighting_sharpens_as_stated(last_rows: dict[str, Tensor], operator: str, expected: float, spread: float):
    found = last_rows[operator]
    assert abs(float(found.mean()) - expected) < 0.005 + 3 * spread / math.sqrt(len(found))
    assert float(found.std()) == pytest.approx(spread, rel=0.25)
    assert last_rows["uniform"].mean().item() == pytest.approx(math.log(1024), abs=1e-4)


def test_a_uniform_row_stays_uniform_under_re_weighting():
    """ReLU(n·A − 1) leaves 0/0 of it, or rounding noise to the fifteenth power."""
    for dtype in (torch.float32, torch.float64):
        row = torch.randn(1, 1, WIDTH, dtype=dtype).expand(1, TOKENS, WIDTH)
        turned = row + torch.finfo(dtype).eps * torch.randn(1, TOKENS, WIDTH, dtype=dtype)
        for key in (row, turned):
            found = weights(ReweightedSoftplus(15), row @ key.mT, row, key, CAUSAL)
            assert torch.allclose(found, weights(Uniform(), row @ key.mT, row, key, CAUSAL), atol=1e-5)


def test_re_weighting_keeps_keys_above_the_mean_of_their_row_alone():
    logits, query, key = states()
    plain, found = (weights(operator, logits, query, key, CAUSAL) for operator in (Softplus(), ReweightedSoftplus(3)))
    mean = 1 / torch.arange(1, TOKENS + 1, dtype=torch.float64)[:, None]
    assert torch.equal((found > 0)[:, 3:], (plain > mean)[:, 3:])
    assert (found[:, :3] > 0).sum() == HEADS * 6  # O is 0 in the first three rows


def test_a_great_power_is_a_hard_maximum_without_overflow():
    logits, query, key = states(64)
    plain, found = (
        weights(operator, logits.float(), query.float(), key.float(), causal(64))
        for operator in (Softplus(), ReweightedSoftplus(1e5))
    )
    assert torch.equal(found.argmax(-1), plain.argmax(-1))
    assert (found.amax(-1) > 0.99).double().mean() > 0.95


# -- log-normal -----------------------------------------------------------------------------------


def test_log_normal_has_its_closed_form():
    logits, query, key = states(6)
    found = weights(LogNormal(0.7, 0.9), logits, query, key, causal(6))
    features = ((0.7 * query).exp() @ (0.9 * key).exp().mT) * causal(6)
    assert torch.allclose(found, features / features.sum(-1, keepdim=True), atol=1e-15)


def test_without_a_mask_its_rank_is_at_most_the_width():
    logits, query, key = states(64)
    values = torch.linalg.svdvals(weights(LogNormal(), logits, query, key, torch.ones(64, 64, dtype=torch.bool)))
    assert (values[:, WIDTH:] / values[:, :1]).max() < 1e-14
    assert (values[:, WIDTH - 1] / values[:, 0]).min() > 1e-9
    assert (
        torch.linalg.svdvals(weights(Softmax(), logits, query, key, torch.ones(64, 64, dtype=torch.bool)))[:, WIDTH].min() > 1e-3
    )


@pytest.mark.parametrize("scale", [0.2, 1.0, 2.5])
def test_matched_moments_give_log_weights_the_variance_of_the_logits(scale: float):
    logits, query, key = states(48, scale=scale)
    seen = causal(48)
    alpha, beta = LogNormal().scales(AttentionInput(logits, query, key, seen))
    found = log_weights(alpha * query, beta * key)

    def variance(values: Tensor) -> float:
        return sum(values[..., m, : m + 1].var(-1, correction=0).mean().item() for m in range(1, 48)) / 47

    assert variance(found) == pytest.approx(variance(logits), rel=1e-7)
    assert torch.allclose((alpha * query).std((-2, -1)), (beta * key).std((-2, -1)), rtol=1e-12)


def test_its_log_weights_are_near_normal_for_small_exponents_and_skewed_where_moments_match():
    """Of Gaussian states, 64 wide, skewness over the 512 keys of a row.

    Exponents of unit spread give 0.15. To vary as logits of unit variance do, they need a spread of 3.2, at which the largest
    product rules each sum: skewness 0.84, where the logits themselves have none.
    """
    logits, query, key = states(512, 1, 64, scale=1.0)
    alpha, beta = LogNormal().scales(AttentionInput(logits, query, key, torch.ones(512, 512, dtype=torch.bool)))

    def skewness(values: Tensor) -> float:
        standard = (values - values.mean(-1, keepdim=True)) / values.std(-1, correction=0, keepdim=True)
        return standard.pow(3).mean().item()

    assert abs(skewness(logits)) < 0.02
    assert abs(skewness(log_weights(query / math.sqrt(2), key / math.sqrt(2)))) < 0.3
    assert float(alpha * math.sqrt(2)) == pytest.approx(3.2, abs=0.1)
    assert skewness(log_weights(alpha * query, beta * key)) == pytest.approx(0.84, abs=0.15)


def test_logits_that_do_not_vary_give_uniform_attention():
    _, query, key = states()
    found = weights(LogNormal(), torch.full((HEADS, TOKENS, TOKENS), 3.0, dtype=torch.float64), query, key, CAUSAL)
    assert torch.allclose(found[0], weights(Uniform(), found, query, key, CAUSAL)[0], atol=1e-15)


def test_large_exponents_stay_finite():
    logits, query, key = states(scale=30)
    assert weights(LogNormal(20.0, 20.0), logits, query, key, CAUSAL).isfinite().all()
    assert weights(LogNormal(), logits, query, key, CAUSAL).isfinite().all()


def test_the_diagonal_is_softmax_inside_blocks():
    logits, query, key = states()
    both, alone = (weights(LogNormal(0.5, 0.5, diagonal), logits, query, key, CAUSAL) for diagonal in (8, None))
    blocks = torch.block_diag(*[torch.ones(8, 8)] * 3).bool() & CAUSAL
    inside = logits.masked_fill(~blocks, -torch.inf).softmax(-1)
    assert torch.allclose(2 * both - alone, inside, atol=1e-15)


# -- closed forms ---------------------------------------------------------------------------------

TOYS = [
    (Identity(), [1.0] * 8, 8.0, 0.0),
    (Uniform(), [1.379779, 0.705770, 0.411044, 0.270083], 761 / 280, 1.325575363),
    (FirstToken(), [math.sqrt(8)] + [0.0] * 7, 8.0, 0.0),
    (PreviousToken(), [math.sqrt(2)] + [1.0] * 6 + [0.0], 8.0, 0.0),
]


@pytest.mark.parametrize(("operator", "singular", "energy", "mean_entropy"), TOYS, ids=lambda value: getattr(value, "name", ""))
def test_toy_matrices_have_their_exact_spectra(operator: Operator, singular: list[float], energy: float, mean_entropy: float):
    pattern = of_toy(operator)
    assert torch.linalg.svdvals(pattern)[: len(singular)].tolist() == pytest.approx(singular, abs=1e-6)
    assert pattern.square().sum().item() == pytest.approx(energy, abs=1e-12)
    assert entropy(pattern).mean().item() == pytest.approx(mean_entropy, abs=1e-9)


def test_the_product_of_uniform_causal_singular_values_is_one_over_a_factorial():
    assert torch.linalg.svdvals(of_toy(Uniform())).log().sum().item() == pytest.approx(-math.lgamma(9), abs=1e-12)


def test_inside_a_window_the_first_token_is_the_first_that_is_seen():
    seen = CAUSAL & ~causal(TOKENS).tril(-4)
    logits, query, key = states()
    first = weights(FirstToken(), logits, query, key, seen)[0].argmax(-1)
    assert first.tolist() == [max(0, m - 3) for m in range(TOKENS)]
    alone = weights(PreviousToken(), logits, query, key, torch.eye(TOKENS, dtype=torch.bool))
    assert torch.equal(alone[0], torch.eye(TOKENS, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 12),
    st.floats(0.01, 30),
    st.sampled_from(sorted(STOCHASTIC)),
)
def test_any_shape_window_and_scale_gives_weights(tokens: int, heads: int, width: int, window: int, scale: float, name: str):
    """Non-negative, summing to one over what is seen, whatever is asked."""
    query, key = scale * torch.randn(2, heads, tokens, width)
    seen = causal(tokens) & ~causal(tokens).tril(-window)
    found = weights(OPERATORS[name](), query @ key.mT, query, key, seen)
    assert (found >= 0).all()
    assert not found[..., ~seen].any()
    assert torch.allclose(found.sum(-1), torch.ones(heads, tokens), atol=1e-5)


# -- symmetries -----------------------------------------------------------------------------------

SCALES = st.floats(0.05, 20)


@settings(max_examples=25, deadline=None)
@given(SCALES, SCALES, st.integers(0, 2**31))
def test_softplus_knows_directions_alone(of_query: float, of_key: float, seed: int):
    torch.manual_seed(seed)
    logits, query, key = states(9)
    for operator in (Softplus(), ReweightedSoftplus(3)):
        found = weights(operator, logits, of_query * query, of_key * key, causal(9))
        assert torch.allclose(found, weights(operator, logits, query, key, causal(9)), atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(SCALES, st.integers(0, 2**31))
def test_matched_log_normal_attention_has_no_scale_of_its_own(scale: float, seed: int):
    """Queries times a number and keys over it leave the logits, and so must leave what is matched to them."""
    torch.manual_seed(seed)
    logits, query, key = states(9)
    found = weights(LogNormal(), logits, scale * query, key / scale, causal(9))
    assert torch.allclose(found, weights(LogNormal(), logits, query, key, causal(9)), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(7)))
def test_operators_of_content_know_no_order(order: list[int]):
    logits, query, key = states(7)
    every = torch.ones(7, 7, dtype=torch.bool)
    for operator in (Softmax(0.7), Softplus(), ReweightedSoftplus(), LogNormal(), Uniform(), LowRank(3)):
        found = weights(operator, logits[:, order][..., order], query[:, order], key[:, order], every)
        assert torch.allclose(found, weights(operator, logits, query, key, every)[:, order][..., order], atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 20), st.floats(1.01, 5))
def test_a_higher_temperature_never_sharpens(temperature: float, factor: float):
    sides = states(12)
    cold, hot = (entropy(weights(Softmax(t), *sides, causal(12))) for t in (temperature, temperature * factor))
    assert (hot - cold).min() > -1e-12


def test_neutral_parameters_give_softmax():
    sides = states()
    own = weights(Softmax(), *sides, CAUSAL)
    for operator in (
        Alibi([0.0] * HEADS),
        UniversalRelative(torch.ones(TOKENS)),
        UniversalRelative(torch.ones_like, b=torch.zeros_like),
    ):
        assert torch.allclose(weights(operator, *sides, CAUSAL), own, atol=1e-15)
    alibi = UniversalRelative(torch.ones(TOKENS), b=-torch.tensor(alibi_slopes(HEADS))[:, None] * torch.arange(TOKENS))
    assert torch.allclose(weights(alibi, *sides, CAUSAL), weights(Alibi(), *sides, CAUSAL), atol=1e-7)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Softmax(0.0), "temperature is 0"),
        (lambda: Softmax(float("nan")), "temperature is nan"),
        (lambda: ReweightedSoftplus(-1), "power is -1"),
        (lambda: LowRank(0), "rank is 0"),
        (lambda: LogNormal(alpha=1.0), "both or none"),
        (lambda: LogNormal(diagonal=0), "0 positions"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(make, words: str):
    with pytest.raises(InputError, match=words):
        make()


def test_operators_that_do_not_fit_the_states_are_refused():
    sides = states()
    for operator, words in (
        (UniversalRelative(torch.ones(TOKENS - 1)), "distance"),
        (UniversalRelative(torch.ones(HEADS + 1, TOKENS)), "for 4 heads"),
        (Alibi([1.0, 2.0]), "for 2 heads"),
        (Softmax, "the class 'Softmax'"),
        (lambda given: given.logits[..., :3], "gives Tensor"),
        (lambda given: given.logits * torch.nan, "not finite"),
        (lambda given: torch.ones_like(given.logits), "mask hides"),
    ):
        with pytest.raises(InputError, match=words):
            weights(operator, *sides, CAUSAL)


def test_states_that_do_not_fit_each_other_are_refused():
    logits, query, key = states()
    for wrong, words in (
        ((logits.half(), query.half(), key.half(), CAUSAL), "float32 or float64"),
        ((logits, query.float(), key, CAUSAL), "float32"),
        ((logits, query, key[:1], CAUSAL), "repeated to the query heads"),
        ((logits, query, key[..., :3], CAUSAL), "width"),
        ((logits.mT[..., :3], query[:, :, :], key[:, :3], CAUSAL[:, :3]), "no more queries than keys"),
        ((logits, query, key, CAUSAL.float()), "bool"),
        ((logits, query, key, CAUSAL[:5]), "bool"),
        ((logits, query, key, CAUSAL, torch.zeros(2)), "sinks"),
    ):
        with pytest.raises(InputError, match=words):
            weights(Softmax(), *wrong)
