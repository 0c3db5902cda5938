"""What the horn does to losses and to logits, against models in which it is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import lens
from lens.base.errors import InputError, UnsupportedModelError
from lens.models.heads import head_states
from lens.models.three_phase import ThreePhaseConfig, ThreePhaseForCausalLM, transported_direction
from lens.probes.horn_effect import horn_cost, horn_logits
from tests.models.families import build

TINY = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 3,
}  # fmt: skip
IDS = [[3, 1, 41, 5, 9, 26, 53, 58, 9, 7, 9, 3, 2], [38, 46, 26, 43, 38, 32, 7, 9, 50, 28, 8, 41, 9, 7]]


def opened(dtype: torch.dtype = torch.float64, **options: Any):
    torch.manual_seed(0)
    module = ThreePhaseForCausalLM(ThreePhaseConfig(**{**TINY, **options})).to(dtype)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name or "theta" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return lens.load(module)


def test_losses_are_those_of_models_with_those_horns():
    model = opened()
    found = horn_cost(model, IDS, tokens=12)
    assert found.sizes == {"horn": 4, "document": 2, "position": 11}
    ids = torch.tensor([one[:12] for one in IDS])
    for horn, kind in (("own", "fixed"), ("zero", "centred")):
        built = ThreePhaseForCausalLM(ThreePhaseConfig(**TINY, horn=kind)).double().eval()
        built.load_state_dict(model.module.state_dict())
        with torch.no_grad():
            losses = -built(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        assert np.allclose(found.loss.sel(horn=horn), losses, atol=1e-12)
    assert np.allclose(found.cost, (found.loss - found.loss.sel(horn="own")).mean("position"))
    assert (found.cost.sel(horn="own") == 0).all()
    assert (np.abs(found.cost.sel(horn=["zero", "constant", "permuted"])) > 1e-6).all()


def test_the_profiles_have_the_same_mean_and_zero_is_zero():
    profile = horn_cost(opened(), IDS, tokens=12).profile
    assert profile.sel(horn="constant").values == pytest.approx((1 / np.arange(1, 13)).mean())
    assert set(np.round(profile.sel(horn="permuted").values, 12)) <= set(np.round(1 / np.arange(1, 13), 12))
    assert (profile.sel(horn="zero") == 0).all()
    assert profile.sel(horn="own").isnull().all()


def test_without_positions_and_horn_a_constant_is_one_horn_for_all():
    """A model that reads only the token before it cannot feel a permutation but through the horn."""
    found = horn_cost(opened(horn="centred"), IDS, tokens=12)
    assert np.abs(found.cost.sel(horn="zero")).max() < 1e-12


def test_the_share_is_that_of_logits_without_the_component():
    """One block without rotations behind it: the direction is that of equal channels, and is taken out by hand."""
    model = opened(torch.float32, num_phases=1, phase_norm=False)
    found = horn_logits(model, IDS[0])
    layer, states = model.module.model.layers[0], model.run(IDS[0]).residual[0]
    given = head_states(model, IDS[0])[0]
    scale = states.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()
    with torch.no_grad():
        free = (states - states.mean(-1, keepdim=True)) * scale * layer.input_layernorm.weight
        turned = layer.self_attn.q_proj(free), layer.self_attn.k_proj(free)
    query, key = (part.unflatten(-1, (-1, 8)).transpose(0, 1).float() for part in turned)
    logits = given.logits(4)
    rest = type(given)(**{**vars(given), "query": query, "key": key}).logits(4)
    sums = np.zeros(2)
    for row in range(1, len(IDS[0])):
        for place, values in enumerate((logits - rest, logits)):
            sums[place] += values[row, : row + 1].var() * (row + 1)
    assert float(found.share[0, 4]) == pytest.approx(sums[0] / sums[1], rel=1e-4)
    u = transported_direction(model.module, 0).float()
    assert float(found.energy[0]) == pytest.approx(((states @ u) / states.norm(dim=-1)).pow(2).mean().item(), rel=1e-6)


def test_a_horn_without_an_embedding_beside_it_is_all_there_is_and_a_missing_one_nothing():
    """Embedded tokens of little length leave hardly more than the horn in the first block's states, in one direction."""
    with_horn, without = (
        horn_logits(opened(torch.float32, **options), IDS[0]) for options in ({"initializer_range": 0.01}, {"horn": "centred"})
    )
    assert float(with_horn.energy[0]) == pytest.approx(1, abs=0.01)
    assert with_horn.share[0].values == pytest.approx(1, abs=0.1)
    assert float(with_horn.random_share[0].median()) < 0.3
    assert float(without.share[0].max()) < 1e-10
    assert with_horn.random_share.shape == (2, 6, 10)


def test_what_has_no_horn_or_too_little_text_is_refused():
    llama = lens.load(build("llama"))
    with pytest.raises(UnsupportedModelError, match="has no horn"):
        horn_cost(llama, IDS)
    with pytest.raises(UnsupportedModelError, match="has no horn"):
        horn_logits(llama, IDS[0])
    with pytest.raises(InputError, match="2 documents, the shortest of 13 tokens"):
        horn_cost(opened(), IDS, tokens=14)
    with pytest.raises(InputError, match="0 documents"):
        horn_cost(opened(), [])
    with pytest.raises(InputError, match="1 token"):
        horn_logits(opened(), [3])


def test_they_go_to_files_and_back(tmp_path):
    for name, found in {"cost": horn_cost(opened(), IDS, tokens=5), "logits": horn_logits(opened(torch.float32), IDS[0])}.items():
        found.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / f"{name}.nc", engine="h5netcdf") as kept:
            xr.testing.assert_identical(kept.load(), found)
