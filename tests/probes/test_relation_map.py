"""Maps of relations: exact where the model is affine, inverses that are inverses, and products for whole Jacobians."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from lens.base.errors import InputError
from lens.models.edits import replace_block
from lens.probes.relation_map import continuation, fit_relation_map, load_relation_map, low_rank_inverse, mean_jacobians, read
from lens.probes.relations import stacked
from tests.probes.relation_toys import small_model, small_task


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def task(model):
    return small_task(model)


@pytest.fixture
def affine():
    """A model of affine blocks, asked at the end of prompts that end with the subject: the map is the model."""
    model = small_model()
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.linalg.qr(torch.randn(32, 32, generator=generator))[0] for _ in range(3)]
    with ExitStack() as stack:
        for block, matrix in enumerate(matrices):
            stack.enter_context(replace_block(model, block, lambda x, m=matrix, b=block: 2 * x @ m + b))
        asked = small_task(model, template=2)
        yield model, asked, fit_relation_map(model, asked, 1, products=None, beta=1.0, rank=32), matrices


def test_of_an_affine_model_the_map_is_exact(affine):
    model, task, found, matrices = affine
    weight = 4 * (matrices[1] @ matrices[2]).T
    assert torch.allclose(found.left * found.values @ found.right, weight, atol=1e-4)
    assert torch.allclose(found.bias, 2 * torch.ones(32) @ matrices[2] + 2, atol=1e-4)
    states, outputs = stacked(task.tests)
    assert torch.allclose(found(states[:, 1]), outputs, rtol=1e-4, atol=1e-3)
    assert found.score(model, task).agrees.to_numpy().all()


def test_there_an_edit_of_full_rank_hits_its_target(affine):
    model, task, found, _ = affine
    one, other = task.tests[0], task.tests[1]
    change = found.edit(other.output - one.output)
    given = continuation(model, one).outputs(1, (one.states[1] + change)[None])[0]
    assert torch.allclose(given, other.output, rtol=1e-3, atol=1e-3)


def test_there_one_direction_for_each_subject_is_enough(affine):
    """On the subjects' own states a fit by products is exact however few directions are beside them."""
    model, task, whole, _ = affine
    found = fit_relation_map(model, task, 1, products=1, beta=1.0)
    states, _ = stacked(task.everything)
    assert torch.allclose(found(states[:, 1]), whole(states[:, 1]), rtol=1e-4, atol=1e-3)


def test_products_give_the_whole_jacobian_once_they_span_it(model, task):
    states, _ = stacked(task.everything)
    whole = mean_jacobians(model, task.examples, states, [0, 1, 2], None)
    few, many = (mean_jacobians(model, task.examples, states, [1], products)[1] for products in (2, 32))
    errors = [float((one.span @ one.rows - whole[1].rows).norm() / whole[1].rows.norm()) for one in (few, many)]
    assert errors[1] < 1e-5 < errors[0] < 1
    for one in (few, many):
        assert torch.allclose(one.moved, whole[1].moved, rtol=1e-3, atol=1e-3)
        own = one.span @ (one.rows @ states[:, 1].T)
        assert torch.allclose(own, whole[1].rows @ states[:, 1].T, rtol=1e-3, atol=1e-2)
    assert many.cosine == pytest.approx(whole[1].cosine, abs=1e-4)


def test_the_cosine_of_jacobians_is_the_mean_over_pairs(model, task):
    identity = torch.eye(model.d_model)
    jacobians = [continuation(model, one).pull_back(identity)[1].flatten() for one in task.examples]
    rows = torch.stack([one / one.norm() for one in jacobians])
    expected = float((rows @ rows.T).triu(1).sum() / 6)
    states, _ = stacked(task.everything)
    assert mean_jacobians(model, task.examples, states, [1], None)[1].cosine == pytest.approx(expected, abs=1e-5)


def test_low_rank_inverses():
    matrix = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix)
    assert torch.allclose(low_rank_inverse(left, values, right, 12) @ matrix, torch.eye(12, dtype=torch.float64), atol=1e-10)
    for rank in (1, 5):
        part = left[:, :rank] * values[:rank] @ right[:rank]
        inverse = low_rank_inverse(left, values, right, rank)
        for penrose, same in (
            (part @ inverse @ part, part),
            (inverse @ part @ inverse, inverse),
            ((part @ inverse).T, part @ inverse),
            ((inverse @ part).T, inverse @ part),
        ):
            assert torch.allclose(penrose, same, atol=1e-10)
    with pytest.raises(InputError, match="rank is 13"):
        low_rank_inverse(left, values, right, 13)


def test_without_its_linear_part_a_map_says_one_thing(model, task):
    found = fit_relation_map(model, task, 1, products=4, beta=0.0)
    words = found.score(model, task).word.to_numpy()
    assert len(set(words.tolist())) == 1


def test_read_gives_top_tokens_and_log_probabilities(model):
    states = torch.randn(5, model.d_model)
    top, logprob = read(model, states, [3, 1, 4, 1, 5])
    expected = model.unembed(states).log_softmax(-1)
    assert (top == expected.argmax(-1).numpy()).all()
    assert np.allclose(logprob, expected[range(5), [3, 1, 4, 1, 5]].numpy(), atol=1e-4)


def test_the_factor_is_chosen_without_the_tests(model, task):
    blind = replace(task, tests=tuple(replace(one, token=0, expected=0) for one in task.tests))
    assert fit_relation_map(model, blind, 1, products=4).beta == fit_relation_map(model, task, 1, products=4).beta


def test_a_map_is_kept_in_a_file(model, task, tmp_path):
    found = fit_relation_map(model, task, 1, products=4)
    back = load_relation_map(found.save(tmp_path / "map.safetensors"), model)
    assert torch.equal(back.left, found.left)
    assert (back.beta, back.rank, back.layer, back.source) == (found.beta, found.rank, found.layer, found.source)
    with pytest.raises(InputError, match="was fitted on"):
        load_relation_map(tmp_path / "map.safetensors", small_model(seed=5))
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no relation map"):
        load_relation_map(tmp_path / "other", model)


def test_refusals(model, task):
    with pytest.raises(InputError, match=r"layers \[3\]"):
        fit_relation_map(model, task, 3)
