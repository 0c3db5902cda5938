"""Contributions add up to the logit, and the singular vectors to the contributions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from lens.base.errors import InputError
from lens.models.frozen import FrozenModel, freeze
from lens.models.model import Model
from lens.probes.frozen_map import frozen_contributions
from lens.probes.frozen_spectrum import frozen_map_spectrum
from tests.models.families import build

IDS = list(range(3, 15))


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def frozen(request) -> FrozenModel:
    """Without biases; with them; with capped logits."""
    return freeze(Model(build(request.param), name=request.param), IDS)


@pytest.fixture(scope="module")
def llama() -> FrozenModel:
    return freeze(Model(build("llama")), IDS)


def test_contributions_add_up(frozen: FrozenModel):
    model, logits = frozen.model, frozen.logits.double()
    size = float(logits.abs().max())
    wanted = {
        "none": float(logits[-1].max()),
        "rival": float(logits[-1].max() - logits[-1, 5]),
        "centred": float(logits[-1].max() - logits[-1].mean()),
    }
    choices: dict[str, dict[str, Any]] = {"none": {}, "rival": {"rival": 5}, "centred": {"centred": True}}
    for name, options in choices.items():
        found = frozen_contributions(model, frozen, **options)
        assert float(found.logit) == pytest.approx(wanted[name], rel=1e-6)
        assert abs(float(found.error)) < 1e-5 * size
        assert float(found.contribution.sum() + found.bias) == pytest.approx(wanted[name], abs=1e-5 * size)
        assert float(found.direct.sum() + found.direct_start + found.head_bias) == pytest.approx(wanted[name], abs=1e-5 * size)
        assert float(found.direct[-1]) == pytest.approx(float(found.total[-1]), rel=1e-5, abs=1e-5)
        if model.name == "llama":
            assert float(found.bias) == 0
            assert np.abs(found.state_bias).max() < 1e-5 * size
            assert abs(float(found.head_bias)) < 1e-5 * size
    assert (float(frozen_contributions(model, frozen).bias) != 0) == (model.name == "gpt2")


def test_the_first_layer_is_the_embedding(llama: FrozenModel):
    found = frozen_contributions(llama.model, llama, target=9)
    assert found.target_id == 9
    assert np.allclose(found.state_contribution[0], found.contribution, rtol=1e-5, atol=1e-5)
    last = found.state_contribution[-1]
    assert float(last[-1]) == pytest.approx(float(found.logit), rel=1e-5)
    assert np.abs(last[:-1]).max() == 0  # the final norm reads one position


def test_a_text_and_what_was_frozen_give_the_same(llama: FrozenModel):
    given = frozen_contributions(llama.model, IDS, position=6)
    assert given.drop_attrs().equals(frozen_contributions(llama.model, llama, position=6).drop_attrs())
    assert np.abs(given.contribution[7:]).max() == 0
    assert given.answer_position == 6
    assert given.probability == pytest.approx(float(llama.logits[6].double().softmax(-1).max()))


def test_a_caller_may_have_gradients_off(llama: FrozenModel):
    usual, spectrum = frozen_contributions(llama.model, llama, target=5), frozen_map_spectrum(llama.model, llama, vectors=2)
    with torch.no_grad():
        xr.testing.assert_identical(frozen_contributions(llama.model, llama, target=5), usual)
        xr.testing.assert_identical(frozen_map_spectrum(llama.model, llama, vectors=2), spectrum)


def test_zeroing_an_embedding_under_frozen_factors_takes_its_contribution(llama: FrozenModel):
    found = frozen_contributions(llama.model, llama, target=11)
    without = llama.embedding.clone()
    without[4] = 0
    weights = torch.zeros(llama.model.vocab_size)
    weights[11] = 1
    row, _ = llama.direction(weights, 11)
    hidden = llama(torch.stack([llama.embedding, without])).hidden[:, -1].detach()
    assert float((hidden[0] - hidden[1]) @ row) == pytest.approx(float(found.contribution[4]), rel=1e-3, abs=1e-4)


def test_the_plain_gradient_is_finite_differences(llama: FrozenModel):
    model = Model(build("llama", dtype=torch.float64))
    frozen = freeze(model, IDS)
    found = frozen_contributions(model, frozen, target=11)
    grown = frozen.embedding.clone()
    step = 1e-3  # some factors are computed in float32
    grown[4] *= 1 + step
    shrunk = frozen.embedding.clone()
    shrunk[4] *= 1 - step
    hidden = frozen.unfrozen(torch.stack([grown, shrunk])).hidden[:, -1].detach()
    logits = model.readout.transform(model.anatomy.head(hidden))[:, 11].detach()
    assert float(found.gradient_contribution[4]) == pytest.approx(float(logits[0] - logits[1]) / (2 * step), rel=1e-2, abs=1e-3)
    assert float(found.contribution[4]) != pytest.approx(float(found.gradient_contribution[4]), rel=0.05)


# -- the spectrum ---------------------------------------------------------------------------------


def spectrum(frozen: FrozenModel, **options) -> xr.Dataset:
    return frozen_map_spectrum(frozen.model, frozen, **{"vectors": 4, "top_k": 3, **options})


def test_all_vectors_are_the_map(frozen: FrozenModel):
    most = min(frozen.hidden.shape[1], frozen.embedding.shape[1])
    found = spectrum(frozen, vectors=most)
    assert found.attrs["exact"] == 1
    assert float(found.share.sum()) == pytest.approx(1)
    wanted = frozen_contributions(frozen.model, frozen, centred=True)
    assert float(found.contribution.sum()) == pytest.approx(float(wanted.contribution.sum()), abs=1e-3)
    part = spectrum(frozen, token=3, vectors=most)
    assert float(part.contribution.sum()) == pytest.approx(float(wanted.contribution[3]), abs=1e-3)
    assert np.allclose(found.reading.sum("position"), 1)
    assert np.allclose(part.reading[:, 3], 1)


def test_squares_of_blocks_add_up(llama: FrozenModel):
    blocks = [spectrum(llama, token=token).attrs["sum_of_squares"] for token in range(len(IDS))]
    assert sum(blocks) == pytest.approx(spectrum(llama).attrs["sum_of_squares"], rel=1e-4)


def test_subspace_iteration_finds_the_largest(frozen: FrozenModel):
    whole, part = spectrum(frozen), spectrum(frozen, whole=False)
    assert part.attrs["exact"] == 0
    assert np.allclose(part.singular_value, whole.singular_value[:4], rtol=1e-2)
    assert float(part.stable_rank) == pytest.approx(float(whole.stable_rank), rel=0.1)
    assert np.array_equal(part.written_id[0], whole.written_id[0])
    assert np.array_equal(part.read_id[0], whole.read_id[0])
    assert part.contribution[0] == pytest.approx(float(whole.contribution[0]), rel=1e-2)


def test_words_are_those_of_the_vectors(llama: FrozenModel):
    rows = torch.eye(32)
    matrix = llama.transposed(11, 32)(rows).flatten(1).double()
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = spectrum(llama)
    assert np.allclose(found.singular_value, values)
    assert float(found.stable_rank) == pytest.approx(float((values**2).sum() / values[0] ** 2))
    sign = 1.0 if float(right[0] @ llama.embedding.flatten().double()) > 0 else -1.0
    logits = llama.model.anatomy.head.weight.detach().double() @ left[:, 0] * sign
    assert found.written_id[0, 0].to_numpy().tolist() == (logits - logits.mean()).topk(3).indices.tolist()
    place = int(found.read_position[0])
    along = llama.model.anatomy.embedding.weight.detach().double() @ right[0].view(12, 32)[place] * sign
    assert found.read_id[0, 1].to_numpy().tolist() == (-along).topk(3).indices.tolist()


def test_refused_in_one_line(llama: FrozenModel):
    model = llama.model
    unfit: list[dict[str, Any]] = [{"position": 12}, {"target": 5, "rival": 5}, {"target": 500}]
    for wrong in unfit:
        with pytest.raises(InputError, match="Try:"):
            frozen_contributions(model, llama, **wrong)
    for wrong in ({"vectors": 33}, {"top_k": 0}, {"token": 7, "position": 6}, {"token": 12}):
        with pytest.raises(InputError, match="Try:"):
            spectrum(llama, **wrong)
    with pytest.raises(InputError, match="was frozen in"):
        frozen_contributions(Model(build("gpt2")), llama)
