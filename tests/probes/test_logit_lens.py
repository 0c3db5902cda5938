"""The logit lens on random architectures, on a model solved by hand, and on SmolLM2."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.probes.logit_lens import first_correct_layer, settled_layer
from tests.models.families import FAMILIES, build

EIFFEL = "The Eiffel Tower is located in the city of Paris, the capital of"


@pytest.fixture(scope="module")
def eiffel(smollm2):
    return smollm2.run(EIFFEL)


@pytest.fixture(scope="module")
def dataset(eiffel):
    return lens.logit_lens(eiffel)


@pytest.mark.parametrize("family", FAMILIES)
def test_on_the_last_layer_the_lens_is_the_model(family: str):
    run = lens.load(build(family)).run(list(range(3, 19)))
    found = lens.logit_lens(run, top_k=4)
    logprob, token_id = run.logits.log_softmax(-1).topk(4)
    assert (found.token_id.isel(layer=-1).to_numpy() == token_id.numpy()).all()
    assert np.allclose(found.logprob.isel(layer=-1), logprob, atol=1e-4)
    assert np.array_equal(found.final_logprob.isel(layer=-1), found.logprob.isel(layer=-1, rank=0))


def test_each_layer_is_the_unembedded_state(tiny):
    run = tiny.run("w3 w1 w4 w1 w5 w9")
    found = lens.logit_lens(run)
    distributions = tiny.unembed(run.residual).log_softmax(-1)
    assert np.allclose(found.logprob, distributions.topk(5).values, atol=1e-4)
    following = run.token_ids[1:]
    surprisal = -distributions[:, :-1].gather(-1, following[None, :, None].expand(len(run.residual), -1, -1))[..., 0]
    assert np.allclose(found.next_surprisal[:, :-1], surprisal, atol=1e-4)


def test_scale_of_a_state_does_not_matter_to_a_model_with_rmsnorm(tiny):
    """RMSNorm with a vanishing epsilon is invariant under h → c·h."""
    tiny.module.model.norm.variance_epsilon = 0.0
    run = tiny.run("w3 w1 w4")
    found = tiny.unembed(run.residual)
    assert torch.allclose(tiny.unembed(8 * run.residual), found, atol=1e-5)


def test_shape_labels_and_provenance(dataset):
    assert dict(dataset.sizes) == {"layer": 31, "position": 15, "rank": 5}
    assert dataset["rank"].to_numpy().tolist() == [1, 2, 3, 4, 5]
    assert all({"long_name"} <= set(variable.attrs) for variable in dataset.variables.values())
    assert dataset.entropy.attrs["units"] == "nats"
    assert dataset.token_id.dtype == np.int32
    assert "".join(dataset.input_token.to_numpy()) == EIFFEL
    expected = {"source", "model", "model_revision", "dtype", "device", "torch_version", "prompt", "tokens"}
    assert expected <= set(dataset.attrs)
    assert all(isinstance(value, (str, int, float)) for value in dataset.attrs.values())


def test_netcdf_round_trip(dataset, tmp_path):
    dataset.to_netcdf(tmp_path / "lens.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "lens.nc", engine="h5netcdf") as read:
        xr.testing.assert_identical(read.load(), dataset)


def test_frame_comes_free(dataset):
    frame = dataset[["entropy", "kl_to_final"]].sel(layer=3).to_dataframe()
    assert len(frame) == 15


def test_next_token_is_unknown_at_the_last_position_only(dataset):
    assert dataset.next_rank.isnull().sum() == 31
    assert dataset.next_surprisal.isel(position=-1).isnull().all()
    assert (dataset.next_rank.isel(position=slice(0, -1)) >= 1).all()


def test_bounds(dataset):
    assert (dataset.kl_to_final >= 0).all()
    assert (dataset.entropy >= 0).all()
    assert (dataset.entropy <= np.log(49152) + 1e-4).all()
    assert (dataset.logprob.diff("rank") <= 0).all()


def test_smollm2_sees_paris_from_layer_28(dataset):
    """0.70 at the end, 0.60 for a comma at layer 26."""
    cell = dataset.isel(position=9)
    assert cell.input_token.item() == " of"
    assert int(cell.settled_layer) == 28
    assert cell.token.sel(layer=30, rank=1).item() == " Paris"
    assert float(np.exp(cell.logprob.sel(layer=30, rank=1))) == pytest.approx(0.70, abs=0.005)
    assert cell.token.sel(layer=26, rank=1).item() == ","
    assert float(np.exp(cell.logprob.sel(layer=26, rank=1))) == pytest.approx(0.60, abs=0.005)
    assert float(cell.entropy.sel(layer=26)) == pytest.approx(1.89, abs=0.005)


def test_without_logits_the_lens_finds_the_same(eiffel, dataset):
    bare = lens.logit_lens(eiffel.model.run(EIFFEL, logits=False))
    assert (bare.token_id == dataset.token_id).all()
    assert np.allclose(bare.kl_to_final, dataset.kl_to_final, atol=1e-3)


def test_settled_layer_by_hand():
    first = np.array([[1, 5, 9, 2], [2, 5, 9, 3], [1, 5, 8, 3], [1, 5, 7, 3]])
    assert settled_layer(first).tolist() == [2, 0, 3, 1]


def test_first_correct_layer_by_hand():
    first = np.array([[1, 5, 9], [2, 5, 4], [1, 6, 4]])
    found = first_correct_layer(first, np.array([2, 7, 4]))
    assert np.array_equal(found, [1, np.nan, np.nan], equal_nan=True)


@pytest.mark.parametrize("top_k", [0, 129])
def test_top_k_out_of_range(tiny, top_k: int):
    with pytest.raises(InputError, match=f"top_k is {top_k}.*1 to 128"):
        lens.logit_lens(tiny.run("w1 w2"), top_k=top_k)


def test_one_token_is_enough(tiny):
    found = lens.logit_lens(tiny.run("w1"))
    assert found.sizes["position"] == 1
    assert found.first_correct_layer.isnull().all()


def test_follow_token_agrees_with_the_lens(eiffel, dataset):
    followed = lens.follow_token(eiffel, " Paris", position=9)
    assert followed.sizes == {"layer": 31, "position": 1}
    assert np.allclose(followed.logprob.isel(position=0), -dataset.next_surprisal.isel(position=9), atol=1e-4)
    # Ranks come from products of another shape, and a rank in the thousands turns on the last bit of a logit.
    late = slice(26, 30)
    assert (followed["rank"].isel(position=0).sel(layer=late) == dataset.next_rank.isel(position=9).sel(layer=late)).all()
    assert followed.input_token.item() == " of"


def test_follow_token_everywhere(tiny):
    run = tiny.run("w3 w1 w4")
    followed = lens.follow_token(run, 7)
    assert np.allclose(followed.logprob, tiny.unembed(run.residual).log_softmax(-1)[..., 7], atol=1e-4)


def test_follow_token_refuses_several_tokens_and_bad_places(tiny):
    run = tiny.run("w3 w1 w4")
    with pytest.raises(InputError, match=r"2 tokens \(w1 \| w2\)"):
        lens.follow_token(run, "w1 w2")
    with pytest.raises(InputError, match="Token id 128"):
        lens.follow_token(run, 128)
    with pytest.raises(InputError, match="Position 3"):
        lens.follow_token(run, "w1", position=3)


def test_bfloat16_runs():
    run = lens.load(build("gemma2", dtype=torch.bfloat16)).run(list(range(3, 12)))
    found = lens.logit_lens(run)
    assert (found.kl_to_final.isel(layer=-1) == 0).all()
    chosen = torch.from_numpy(found.token_id.isel(layer=-1, rank=0).to_numpy()).long()
    # Several tokens can share the largest logit when it has eight bits.
    assert torch.equal(run.logits.gather(-1, chosen[:, None])[:, 0], run.logits.amax(-1))
