"""The prefix decoder: it finds what can be found, comes back from disk as it was, and is judged on text that it has not seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import InputError
from lens.corpora import Corpus
from lens.models.model import Model
from lens.probes.contextualisation import contextualisation, shipped_prefix_decoder
from lens.probes.prefix_decoder import RECIPE, PrefixDecoder, fit_prefix_decoder, load_prefix_decoder, main, normalised
from tests.models.families import build

SMALL = {"tokens": 2000, "names": 40, "hidden": 24, "width": 16, "window": 60, "lags": (1, 2, 5), "layers": (0, 1)}
CYCLE = 30


def counting(documents: int = 60) -> Corpus:
    """Words in a circle: a token tells all that stood before it."""
    texts = [" ".join(f"w{(start * 7 + step) % CYCLE}" for step in range(60)) + f" w{40 + start}" for start in range(documents)]
    return lens.corpus(texts)


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    return lens.load(build("llama"), tokenizer)


@pytest.fixture(scope="module")
def decoder(model) -> PrefixDecoder:
    return fit_prefix_decoder(model, counting(), recipe=replace(RECIPE, steps=300), **SMALL)


def test_what_a_token_tells_is_read_from_it_and_not_from_others(decoder):
    judged = decoder.source
    assert judged["frequency_loss"] == pytest.approx(np.log(CYCLE), abs=0.1)
    assert judged["validation_loss"][0] < 0.3
    assert judged["validation_loss"][1] < judged["frequency_loss"] - 1
    assert min(judged["shuffled_loss"]) > judged["frequency_loss"]
    assert np.mean(judged["validation_loss_by_lag"], axis=1) == pytest.approx(judged["validation_loss"], abs=0.02)
    assert decoder.record is not None
    assert decoder.record.steps[0].loss == pytest.approx(judged["frequency_loss"], abs=0.1)
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_targets_are_the_tokens_before(decoder):
    ids = torch.tensor([4, 5, 127, 7])
    names = {int(one): place for place, one in enumerate(decoder.known)}
    other = len(decoder.known)
    assert 127 not in names
    assert decoder.targets(ids)[:, 0].tolist() == [-100, names[4], names[5], other]
    assert decoder.targets(ids)[:, 1].tolist() == [-100, -100, names[4], names[5]]
    assert (decoder.targets(ids)[:, 2] == -100).all()
    assert torch.equal(decoder.targets(ids[None])[0], decoder.targets(ids))


def test_an_untrained_decoder_says_frequencies():
    decoder = PrefixDecoder(torch.tensor([3, 8]), torch.randn(2, 6), [0], [1], hidden=4, width=3)
    decoder.start_from([3, 3, 3, 8, 9])
    assert decoder.log_frequency.exp().tolist() == pytest.approx([3.5 / 6.5, 1.5 / 6.5, 1.5 / 6.5])
    found = decoder.losses(torch.randn(1, 2, 6), torch.tensor([[0], [2]]))
    assert found.detach().flatten().tolist() == pytest.approx((-decoder.log_frequency[[0, 2]]).tolist(), abs=1e-6)


def test_losses_are_those_of_the_formula(decoder):
    states, targets = torch.randn(2, 5, 32), torch.tensor([[1, 0, -100]] * 5)
    found = decoder.losses(7 * states, targets)  # the size of a state does not matter
    layer, lag = 1, 1
    inner = torch.nn.functional.gelu(normalised(states[layer]) @ decoder.into[layer] + decoder.into_bias[layer])
    names = torch.cat([decoder.embedding @ decoder.projection, decoder.other[None]])
    logits = inner @ decoder.out_of[lag] @ names.T + decoder.bias[lag]
    assert torch.allclose(found[layer, :, lag], -logits.log_softmax(-1)[:, 0], atol=1e-5)
    assert (found[:, :, 2] == 0).all()


def test_it_comes_back_as_it_was_but_for_rounding(decoder, model, tmp_path):
    path = decoder.save(tmp_path / "decoder.safetensors")
    again = load_prefix_decoder(path, model)
    assert (again.layers, again.lags, again.source) == (decoder.layers, decoder.lags, {**decoder.source})
    assert again.record is not None
    assert again.record.steps == decoder.record.steps
    assert torch.equal(again.known, decoder.known)
    for name, value in decoder.named_parameters():
        assert torch.equal(dict(again.named_parameters())[name], value.to(torch.bfloat16).float()), name
    assert torch.equal(again.embedding, decoder.embedding)


def test_damaged_files_and_other_models_are_refused(decoder, model, tokenizer, tmp_path):
    path = decoder.save(tmp_path / "decoder.safetensors")
    with pytest.raises(InputError, match="was trained on"):
        load_prefix_decoder(path, lens.load(build("llama", seed=1), tokenizer))
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(InputError, match="holds no prefix decoder"):
        load_prefix_decoder(path, model)
    with pytest.raises(InputError, match="holds no prefix decoder"):
        load_prefix_decoder(tmp_path / "none.safetensors", model)
    assert shipped_prefix_decoder(model) is None


def test_impossible_settings_are_refused(model):
    with pytest.raises(InputError, match="layers 0 to 3"):
        fit_prefix_decoder(model, counting(), **{**SMALL, "layers": [4]})
    with pytest.raises(InputError, match="more than 99 tokens"):
        fit_prefix_decoder(model, counting(), **{**SMALL, "lags": (99,)})


def test_what_is_recovered_is_what_is_lost_less_than_by_frequencies(decoder, model):
    run = model.run("w3 w4 w5 w6 w7 w8 w9", logits=False)
    found = contextualisation(run, decoder)
    assert found.sizes == {"layer": 2, "position": 7, "lag": 3, "token_kind": 4}
    assert bool(found.prefix_loss.isel(position=0).isnull().all())
    assert bool(found.lag_loss.sel(position=4, lag=5).isnull().all())
    assert float(found.recovered.sel(layer=0, position=6)) > 2
    two = found.lag_loss.sel(position=3, lag=[1, 2]).mean("lag")
    assert found.prefix_loss.sel(position=3).to_numpy() == pytest.approx(two.to_numpy(), rel=1e-5)
    wanted = found.frequency_loss - found.prefix_loss
    assert np.allclose(found.recovered, wanted.transpose("layer", "position"), atol=1e-5, equal_nan=True)
    with pytest.raises(InputError, match="single token"):
        contextualisation(model.run([5]), decoder)
    other = lens.load(build("llama-tied"), None)
    narrow = replace(other.run([5, 6]), residual=torch.zeros(1, 2, 32))
    with pytest.raises(InputError, match="A decoder of"):
        contextualisation(narrow, decoder)


def test_the_command_writes_a_decoder_of_a_folder(tmp_path, model):
    model.module.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n\n".join(document.text for document in counting().documents))
    output = tmp_path / "x.safetensors"
    source = ["--model", str(tmp_path / "model"), "--corpus", str(tmp_path / "text.txt")]
    main([str(output), *source, "--tokens", "300", "--steps", "4"])
    found = load_prefix_decoder(output, lens.load(tmp_path / "model"))
    assert found.record is not None
    assert len(found.record.steps) == 4
    assert found.layers == (0, 1, 2, 3)
