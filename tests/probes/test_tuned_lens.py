"""The tuned lens: at its start the plain lens, trained what it should be, and never another model's."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import AutoConfig, AutoModelForCausalLM

import lens
from lens.base.errors import Cancelled, InputError, MemoryEstimateError
from lens.corpora import Corpus
from lens.models.model import Model
from lens.probes.divergence import DivergenceLoss, Translators, mean_divergence, step_windows
from lens.probes.published_lens import load_published_lens, unembedding_hash
from lens.probes.shortcuts import fit_shortcuts
from lens.probes.translator import Translator
from lens.probes.tuned_lens import PUBLISHED, SMALL, TunedLens, fit_tuned_lens, load_tuned_lens, weights_hash
from lens.training import Recipe, train
from tests.models.families import VOCAB, build

QUICK = Recipe("quick", steps=30, optimiser="adam", learning_rate=3e-3)


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test, but the user's where the real model is read from it."""
    if "smollm2" not in request.fixturenames:
        monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def texts() -> Corpus:
    drawn = np.random.default_rng(0)
    lengths = drawn.integers(40, 200, 60)
    return Corpus("made up", [" ".join(f"w{i}" for i in drawn.integers(4, 124, length)) for length in lengths])


def untrained(model: Model, layers: tuple[int, ...] = (0, 1, 2)) -> TunedLens:
    width = model.d_model
    source = {"model": model.name, "model_fingerprint": model.fingerprint, "weights_hash": weights_hash(model), "layers": 3}
    return TunedLens({i: torch.zeros(width, width) for i in layers}, {i: torch.zeros(width) for i in layers}, source)


def windows_of(model: Model, corpus: Corpus) -> list[list[int]]:
    return [model.encode_bare(document.text)[:40] for document in corpus.documents]


def linear_model(tokenizer, *, offset: bool = False, seed: int = 0) -> Model:
    """A GPT-2 of 16 numbers and three blocks whose stream is affine from the first state to the last.

    Attention writes nothing and the MLPs have no norm and no bend. With `offset` the last block only adds a
    constant and the model has no final norm: layer 2's logits are the final ones but for a constant vector.
    """
    torch.manual_seed(seed)
    options = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64, "activation_function": "linear"}
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **options, bos_token_id=1, eos_token_id=2)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            centre = 1.0 if bool((parameter == 1).all()) else 0.0
            parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
        for block in module.transformer.h:
            block.attn.c_proj.weight.zero_()
            block.attn.c_proj.bias.zero_()
            block.ln_2 = torch.nn.Identity()
        if offset:
            module.transformer.h[-1].mlp.c_proj.weight.zero_()
            module.transformer.h[-1].mlp.c_proj.bias.mul_(3)
            module.transformer.ln_f = torch.nn.Identity()
    return lens.load(module, tokenizer)


# -- what it computes -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt-projected"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_untrained_lens_is_the_plain_lens_exactly(family: str, dtype: torch.dtype, tokenizer):
    model = lens.load(build(family, dtype=dtype), tokenizer)
    run = model.run("w3 w1 w4 w1 w5 w9")
    tuned, plain = lens.logit_lens(run, untrained(model)), lens.logit_lens(run)
    assert (tuned.attrs.pop("lens"), plain.attrs.pop("lens")) == ("tuned", "plain")
    xr.testing.assert_identical(tuned, plain)


def test_translation_is_the_formula(tiny: Model):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(32, 32, generator=generator), torch.randn(32, generator=generator)
    tuned = replace(untrained(tiny, (1,)), weights={1: weight}, biases={1: bias})
    assert isinstance(tuned, Translator)
    h = torch.randn(2, 5, 32, generator=generator)
    assert torch.allclose(tuned.translate(1, h), h + h @ weight + bias, atol=1e-5)
    assert tuned.translate(1, h.double()).dtype == torch.float64
    with pytest.raises(InputError, match=r"no layer 2.*one of \[1\]"):
        tuned.translate(2, h)
    found = lens.logit_lens(tiny.run("w1 w2 w3"), tuned)
    assert found.layer.values.tolist() == [1, 3]
    expected = tiny.unembed(tuned.translate(1, tiny.run("w1 w2 w3").residual[1])).log_softmax(-1).topk(5)
    assert np.allclose(found.logprob.sel(layer=1), expected.values, atol=1e-4)


def reference_loss(model: Model, windows: list[list[int]], layer: int, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Mean KL(final‖lens) window by window, through autograd alone, in float64."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for window in windows:
        states = model.run(window, logits=False).residual[:, 1:]
        carried = states[layer] + (states[layer] @ weight + bias)
        read, final = (model.readout(s).double().log_softmax(-1) for s in (carried, states[-1]))
        total = total + (final.exp() * (final - read)).sum()
        count += states.shape[1]
    return total / count


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt-projected", "granite"])
def test_loss_and_gradients_are_autograds(family: str, tokenizer, texts: Corpus, monkeypatch: pytest.MonkeyPatch):
    """Windows of several lengths, and logits of at most nine tokens at a time."""
    monkeypatch.setattr("lens.probes.divergence._LOGIT_BYTES", 9 * 4 * VOCAB)
    model = lens.load(build(family), tokenizer)
    windows = [window[: 9 + 3 * (i % 3)] for i, window in enumerate(windows_of(model, texts)[:7])]
    generator = torch.Generator().manual_seed(0)
    weights = {i: 0.1 * torch.randn(32, 32, generator=generator) for i in (0, 2)}
    biases = {i: 0.1 * torch.randn(32, generator=generator) for i in (0, 2)}
    module = Translators(weights, biases)
    terms = DivergenceLoss(model, module, windows, len(windows), 0, None)(0)
    gradients = torch.autograd.grad(terms["layer 0"] + 2 * terms["layer 2"], [*module.weight, *module.bias])
    for index, (layer, factor) in enumerate(((0, 1), (2, 2))):
        leaves = [weights[layer].clone().requires_grad_(), biases[layer].clone().requires_grad_()]
        expected = reference_loss(model, windows, layer, *leaves)
        assert terms[f"layer {layer}"].item() == pytest.approx(expected.item(), rel=1e-5)
        for found, wanted in zip(gradients[index::2], torch.autograd.grad(factor * expected, leaves), strict=True):
            assert (found - wanted).norm() < 1e-4 * wanted.norm()


def test_mean_divergence_is_the_logit_lens(tiny: Model, texts: Corpus):
    windows = windows_of(tiny, texts)[:5]
    tuned = replace(untrained(tiny), biases={i: torch.full((32,), 0.3) for i in range(3)})
    found = mean_divergence(tiny, windows, (None, tuned), (0, 2))
    for row, translator in enumerate((None, tuned)):
        datasets = [lens.logit_lens(tiny.run(window), translator) for window in windows]
        kl = np.concatenate([d.kl_to_final.sel(layer=[0, 2]).values[:, 1:] for d in datasets], axis=1).mean(1)
        assert np.allclose(found[row], kl, rtol=1e-4)


def test_steps_go_through_all_windows_before_any_comes_again():
    windows = [[i] for i in range(10)]
    steps = [step_windows(windows, 3, step, seed=1) for step in range(10)]
    turns = np.array(steps).reshape(3, 10)
    assert all(sorted(turn) == list(range(10)) for turn in turns.tolist())
    assert len({tuple(turn) for turn in turns.tolist()}) == 3
    assert steps[4] == step_windows(windows, 3, 4, seed=1)
    assert steps != [step_windows(windows, 3, step, seed=2) for step in range(10)]
    assert [len(step_windows(windows[:2], 5, step, seed=0)) for step in range(3)] == [5, 5, 5]


# -- what training does ---------------------------------------------------------------------------


def test_constant_logit_offset_is_learnt_by_the_biases(tokenizer, texts: Corpus):
    model = linear_model(tokenizer, offset=True)
    windows = windows_of(model, texts)
    module = Translators({2: torch.zeros(16, 16)}, {2: torch.zeros(16)})
    module.weight.requires_grad_(False)
    recipe = Recipe("offset", steps=120, optimiser="adam", learning_rate=0.1)
    train(recipe, module, DivergenceLoss(model, module, windows[:30], 6, 0, None))
    weights, biases = module.maps()
    assert not weights[2].any()
    plain, tuned = mean_divergence(model, windows[30:], (None, TunedLens(weights, biases, {})), (2,))
    assert tuned < 1e-4 < 0.1 < plain


def test_trained_lens_of_a_linear_network_equals_least_squares(tokenizer, texts: Corpus):
    """Least squares is exact there, and training from the identity arrives at the same divergence."""
    model = linear_model(tokenizer)
    words = [document.text.split() for document in texts.documents]
    texts = Corpus("whole windows", [" ".join(one[: len(one) // 40 * 40]) for one in words])  # one pass a step
    moments = lens.collect_moments(model, texts, tokens=4000, window=40, mask="first", pairs="to_final")
    shortcuts = fit_shortcuts(moments.train, ridge=1e-9)
    recipe = Recipe("linear", steps=500, optimiser="adam", learning_rate=0.1)
    tuned = fit_tuned_lens(model, texts, layers=[1, 2], recipe=recipe, tokens_per_step=320, window=40)
    scores = tuned.score(model, texts, start=shortcuts, window=40).kl_to_final
    assert scores.lens.values.tolist() == ["plain", "shortcut", "tuned"]
    assert float(scores.sel(lens="plain").min()) > 0.1
    assert float(abs(scores.sel(lens="tuned") - scores.sel(lens="shortcut")).max()) < 1e-3


def test_published_recipe_is_the_papers_and_improves_on_its_start(tiny: Model, texts: Corpus):
    published = (PUBLISHED.optimiser, PUBLISHED.steps, PUBLISHED.momentum, PUBLISHED.weight_decay, PUBLISHED.schedule)
    assert published == ("sgd", 250, 0.9, 1e-3, "linear")
    assert (PUBLISHED.clip, PUBLISHED.warm_up, PUBLISHED.learning_rate) == (1.0, 0, pytest.approx(1.0 * (1 - 0.9)))
    tuned = fit_tuned_lens(tiny, texts, recipe=PUBLISHED, tokens_per_step=128, window=64)
    assert tuned.layers == (0, 1, 2)
    assert tuned.source["validation_kl"] < 0.5 * tuned.source["validation_kl_start"]
    assert tuned.source["validation_kl_start"] == tuned.source["validation_kl_plain"]
    assert tuned.source["not_improved"] == "none"


def shortcuts_of(model: Model, corpus: Corpus):
    return fit_shortcuts(lens.collect_moments(model, corpus, tokens=3000, window=40, pairs="to_final").train)


def test_training_starts_from_the_shortcut_maps(tiny: Model, texts: Corpus):
    shortcuts = shortcuts_of(tiny, texts)
    still = fit_tuned_lens(
        tiny, texts, start=shortcuts, recipe=replace(QUICK, steps=1, learning_rate=1e-12), tokens_per_step=64, window=32
    )
    h = torch.randn(7, 32)
    for layer in still.layers:
        assert torch.allclose(still.translate(layer, h), shortcuts.translate(layer, h), atol=1e-4)
    better = fit_tuned_lens(tiny, texts, start=shortcuts, recipe=QUICK, tokens_per_step=256, window=32)
    scores = better.score(tiny, texts, start=shortcuts, window=32).kl_to_final
    assert bool((scores.sel(lens="tuned") < scores.sel(lens="shortcut")).all())
    assert (better.source["start"], better.source["start_tokens"]) == ("shortcut", shortcuts.source["count"])


def test_model_is_left_as_it_was(tiny: Model, texts: Corpus):
    tiny.module.train()
    before = {name: value.clone() for name, value in tiny.module.state_dict().items()}
    flags = [parameter.requires_grad for parameter in tiny.module.parameters()]
    fit_tuned_lens(tiny, texts, recipe=QUICK, tokens_per_step=64, window=32)
    assert all(torch.equal(value, before[name]) for name, value in tiny.module.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny.module.parameters())
    assert flags == [parameter.requires_grad for parameter in tiny.module.parameters()]
    assert tiny.module.training
    assert tiny.lock.holder is None


def test_only_training_text_is_trained_on(tiny: Model, texts: Corpus):
    """Other validation and test texts, same maps; the texts of a part alone decide."""
    kept = [d.text for d in texts.part("train")]
    other = Corpus("made up", [*kept, *("w9 " * (50 + i) for i in range(40))])
    added = [d.text for d in other.part("train") if d.text not in kept]
    extended = Corpus("made up", [*(d.text for d in texts.documents), *added])
    left = fit_tuned_lens(tiny, other, recipe=QUICK, tokens_per_step=64, window=32)
    right = fit_tuned_lens(tiny, extended, recipe=QUICK, tokens_per_step=64, window=32)
    assert all(torch.equal(left.weights[i], right.weights[i]) for i in left.layers)
    assert left.source["validation_kl"] != right.source["validation_kl"]


def test_layers_that_training_did_not_improve_are_named(tiny: Model, texts: Corpus):
    wild = replace(QUICK, steps=5, optimiser="sgd", learning_rate=50.0)
    tuned = fit_tuned_lens(tiny, texts, recipe=wild, tokens_per_step=64, window=32)
    assert tuned.source["validation_kl"] > tuned.source["validation_kl_start"]
    assert "2" in tuned.source["not_improved"]
    assert tuned.record is not None
    results = tuned.record.results
    assert results["layers"] == [0, 1, 2]
    missed = [i for i, t, s in zip((0, 1, 2), results["kl_tuned"], results["kl_start"], strict=True) if t >= s]
    assert tuned.source["not_improved"] == ", ".join(map(str, missed))


def test_six_layers_spread_over_the_depth_by_default(tokenizer, texts: Corpus):
    options = {"vocab_size": VOCAB, "n_embd": 8, "n_layer": 30, "n_head": 1, "n_positions": 64}
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **options, bos_token_id=1, eos_token_id=2)).eval()
    tuned = fit_tuned_lens(lens.load(module, tokenizer), texts, recipe=replace(SMALL, steps=1), tokens_per_step=32, window=32)
    assert tuned.layers == (5, 10, 15, 20, 25, 29)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [3]}, r"The layers \[3\].*some of 0, 1, 2"),
        ({"layers": []}, r"The layers \[\]"),
        ({"layers": [-1, 1]}, r"The layers \[-1, 1\]"),
        ({"window": 65}, "Windows of 65 tokens.*at most 64"),
    ],
)
def test_impossible_fits_are_refused(tiny: Model, texts: Corpus, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        fit_tuned_lens(tiny, texts, **{"recipe": QUICK, "tokens_per_step": 64, "window": 32, **options})


def test_starts_that_do_not_fit_are_refused(tiny: Model, texts: Corpus, tokenizer):
    shortcuts = shortcuts_of(tiny, texts)
    partial = replace(shortcuts, maps={pair: found for pair, found in shortcuts.maps.items() if pair[0] == 1})
    with pytest.raises(InputError, match=r"The layers \[0, 1, 2\].*some of 1"):
        fit_tuned_lens(tiny, texts, start=partial, recipe=QUICK, window=32)
    other = lens.load(build("llama", seed=7), tokenizer)
    with pytest.raises(InputError, match="were fitted on"):
        fit_tuned_lens(other, texts, start=shortcuts, recipe=QUICK, window=32)


def test_corpus_without_a_validation_part_is_refused(tiny: Model):
    text = next(t for t in ("w5 " * n for n in range(40, 100)) if Corpus("one", [t]).documents[0].part == "train")
    with pytest.raises(InputError, match="validation part of one gives no windows"):
        fit_tuned_lens(tiny, Corpus("one", [text]), recipe=QUICK, window=32)


def test_memory_is_refused_before_it_is_taken(tokenizer, texts: Corpus):
    shape = {"vocab_size": 128, "hidden_size": 32768, "intermediate_size": 1, "num_attention_heads": 1, "head_dim": 2}
    shape |= {"num_key_value_heads": 1, "num_hidden_layers": 2, "max_position_embeddings": 64}
    model = lens.load(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape)).eval(), tokenizer)
    with pytest.raises(MemoryEstimateError, match=r"The tuned lens would take 32.00 GiB.*fewer layers"):
        fit_tuned_lens(model, texts, window=32)


# -- kept, interrupted, saved ---------------------------------------------------------------------


def test_second_call_reads_what_the_first_one_kept(tiny: Model, texts: Corpus, own_cache: Path):
    options = {"recipe": QUICK, "tokens_per_step": 64, "window": 32}
    first = fit_tuned_lens(tiny, texts, **options)
    assert first.record is not None
    assert first.record.tokens == 30 * 64
    steps: list = []
    second = fit_tuned_lens(tiny, texts, progress=steps.append, **options)
    assert not steps
    assert second.record == first.record
    assert all(torch.equal(first.weights[i], second.weights[i]) for i in first.layers)
    (folder,) = (own_cache / "tuned-lenses").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["lens.jsonl", "lens.safetensors"]
    (folder / "lens.safetensors").write_bytes((folder / "lens.safetensors").read_bytes()[:-9])
    third = fit_tuned_lens(tiny, texts, progress=steps.append, **options)
    assert len(steps) == 30
    assert all(torch.equal(first.weights[i], third.weights[i]) for i in first.layers)
    fit_tuned_lens(tiny, texts, progress=steps.append, **{**options, "recipe": replace(QUICK, seed=1)})
    assert len(steps) == 60


def test_cancelled_fit_goes_on_with_the_same_bits(tiny: Model, texts: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = {"recipe": QUICK, "tokens_per_step": 64, "window": 32}
    whole = fit_tuned_lens(tiny, texts, **options)
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "second"))
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 50:  # before a block, in the middle of a step
            raise Cancelled

    with pytest.raises(Cancelled):
        fit_tuned_lens(tiny, texts, check=check, **options)
    assert tiny.lock.holder is None
    steps: list = []
    again = fit_tuned_lens(tiny, texts, progress=steps.append, **options)
    assert 1 < steps[0].done < 30
    assert all(torch.equal(whole.weights[i], again.weights[i]) for i in whole.layers)
    assert all(torch.equal(whole.biases[i], again.biases[i]) for i in whole.layers)


def trained(model: Model, corpus: Corpus) -> TunedLens:
    return fit_tuned_lens(model, corpus, recipe=replace(QUICK, steps=3), tokens_per_step=64, window=32)


def test_saved_and_read_again(tiny: Model, texts: Corpus, tmp_path: Path):
    tuned = trained(tiny, texts)
    again = load_tuned_lens(tuned.save(tmp_path / "lens.safetensors"), tiny)
    assert again.record == tuned.record
    assert dict(again.source) == {**tuned.source, "stored_dtype": "float32"}
    assert again.layers == tuned.layers == (0, 1, 2)
    assert all(torch.equal(again.weights[i], tuned.weights[i]) for i in tuned.layers)
    assert all(torch.equal(again.biases[i], tuned.biases[i]) for i in tuned.layers)
    half = load_tuned_lens(tuned.save(tmp_path / "half.safetensors", torch.bfloat16), tiny)
    assert half.source["stored_dtype"] == "bfloat16"
    assert all(torch.equal(half.weights[i], tuned.weights[i].bfloat16()) for i in tuned.layers)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "lens.safetensors").stat().st_size
    assert lens.logit_lens(tiny.run("w1 w2 w3"), half).attrs["lens"] == "tuned"


def test_another_model_is_refused(tiny: Model, texts: Corpus, tokenizer, tmp_path: Path):
    tuned = trained(tiny, texts)
    path, other = tuned.save(tmp_path / "lens.safetensors"), lens.load(build("llama", seed=7), tokenizer)
    for attempt in (
        lambda: lens.logit_lens(other.run("w1 w2"), tuned),
        lambda: load_tuned_lens(path, other),
        lambda: tuned.score(other, texts, window=32),
    ):
        with pytest.raises(InputError, match=r"This tuned lens was fitted on .*fit_tuned_lens on this model"):
            attempt()
    with torch.no_grad():
        tiny.module.lm_head.weight[5, 5] += 1  # another head, all else equal
    with pytest.raises(InputError, match="This tuned lens was fitted on"):
        load_tuned_lens(path, tiny)


def test_the_same_model_opened_otherwise_keeps_its_lens(tiny: Model, texts: Corpus, tokenizer, tmp_path: Path):
    """From another folder or in half precision its fingerprint differs, its rounded weights do not."""
    path = trained(tiny, texts).save(tmp_path / "lens.safetensors")
    moved = lens.load(build("llama"), tokenizer)
    moved.module.config._name_or_path = "/elsewhere"
    half = lens.load(build("llama").to(torch.bfloat16), tokenizer)
    assert half.fingerprint != tiny.fingerprint
    for model in (moved, half):
        found = load_tuned_lens(path, model)
        assert lens.logit_lens(model.run("w1 w2"), found).attrs["lens"] == "tuned"


@pytest.mark.parametrize("kind", ["cut", "flipped", "other", "none"])
def test_files_that_hold_no_lens_are_refused(tiny: Model, tmp_path: Path, kind: str):
    path = untrained(tiny).save(tmp_path / "lens.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    if kind == "none":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-50], "flipped": content, "other": b"nothing"}[kind])
    with pytest.raises(InputError, match="holds no tuned lens"):
        load_tuned_lens(path, tiny)


def test_scores_go_through_netcdf(tiny: Model, texts: Corpus, tmp_path: Path):
    scores = trained(tiny, texts).score(tiny, texts, window=32)
    scores.to_netcdf(tmp_path / "scores.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "scores.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), scores)


def test_shipped_lens_reads_held_out_text_better_than_the_plain_lens(smollm2: Model):
    path = Path(lens.__file__).parent / "records" / "tuned-lens-smollm2-135m.safetensors"
    assert path.stat().st_size < 5e6
    tuned = load_tuned_lens(path, smollm2)
    assert tuned.layers == (5, 10, 15, 20, 25, 29)
    assert tuned.record is not None
    assert (tuned.record.recipe, tuned.record.tokens) == (SMALL, 120 * 384)
    assert tuned.source["not_improved"] == "none"
    scores = tuned.score(smollm2, lens.corpus("wikipedia"), tokens=256, window=128).kl_to_final
    assert bool((scores.sel(lens="tuned") < scores.sel(lens="plain") / 4).all())
    assert float(scores.sel(lens="tuned").mean()) < tuned.source["validation_kl_start"]


# -- published lenses -----------------------------------------------------------------------------


def publish(folder: Path, model: Model, **changes) -> dict[str, torch.Tensor]:
    """A lens as tuned-lens 0.2.0 saves it: the state dict of one `Linear` per layer, and a configuration."""
    linears = torch.nn.ModuleList([torch.nn.Linear(model.d_model, model.d_model) for _ in range(model.n_layers)])
    config = {
        "base_model_name_or_path": "a/model",
        "d_model": model.d_model,
        "num_hidden_layers": model.n_layers,
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": unembedding_hash(model),
        "lens_type": "linear_tuned_lens",
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({name: v for name, v in (config | changes).items() if v != "absent"}))
    torch.save(linears.state_dict(), folder / "params.pt")
    return {name: value.detach() for name, value in linears.state_dict().items()}


def test_published_lens_is_read(tiny: Model, tmp_path: Path):
    stored = publish(tmp_path / "lens", tiny)
    found = load_published_lens(tmp_path / "lens", tiny)
    assert found.layers == (0, 1, 2)
    h = torch.randn(5, 32)
    for layer in found.layers:
        expected = h + torch.nn.functional.linear(h, stored[f"{layer}.weight"], stored[f"{layer}.bias"])
        assert torch.allclose(found.translate(layer, h), expected, atol=1e-6)
    assert found.source["published_for"] == "a/model"
    run = tiny.run("w1 w2 w3")
    read = lens.logit_lens(run, found)
    assert read.attrs["lens"] == "tuned"
    again = load_tuned_lens(found.save(tmp_path / "ours.safetensors"), tiny)
    xr.testing.assert_identical(lens.logit_lens(run, again), read)


def test_hash_of_the_head_is_the_authors(tokenizer):
    """Their formula is numpy's abbreviated text of the matrix; the value was made by their package, release 0.2.0."""
    module = build("llama")
    with torch.no_grad():
        module.lm_head.weight.copy_(torch.arange(VOCAB * 32).reshape(VOCAB, 32) / 100)
    assert unembedding_hash(lens.load(module, tokenizer)) == "2c351f325dfeba74ed84f920a11d748e88ca56a99942b84c0056558cfffa3031"


@pytest.mark.parametrize("name", ["unembed_hash", "unemebd_hash"])
def test_lens_of_another_head_is_refused(tiny: Model, tmp_path: Path, name: str):
    """The second spelling is that of release 0.1.0."""
    publish(tmp_path / "lens", tiny, **{"unembed_hash": "absent", name: "0" * 64})
    with pytest.raises(InputError, match=r"trained with the head 000000000000….*the model a/model"):
        load_published_lens(tmp_path / "lens", tiny)
    publish(tmp_path / "lens", tiny, unembed_hash=None)
    assert load_published_lens(tmp_path / "lens", tiny).source["unembed_hash"] == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 33}, "width 33 and 3 layers.*32 and 3"),
        ({"num_hidden_layers": 4}, "width 32 and 4 layers"),
        ({"num_hidden_layers": "absent"}, "width 32 and None layers"),
        ({"lens_type": "other_lens"}, "describes a other_lens"),
        ({"bias": False}, r"differs in the entries 0\.bias, 1\.bias, 2\.bias"),
    ],
)
def test_published_lens_of_another_shape_is_refused(tiny: Model, tmp_path: Path, changes: dict, message: str):
    publish(tmp_path / "lens", tiny, **changes)
    with pytest.raises(InputError, match=message):
        load_published_lens(tmp_path / "lens", tiny)


@pytest.mark.parametrize("kind", ["old names", "fewer", "wide", "nan", "number", "list"])
def test_published_parameters_that_do_not_fit_are_refused(tiny: Model, tmp_path: Path, kind: str):
    state = publish(tmp_path / "lens", tiny)
    bad = {
        "old names": {f"layer_translators.{name}": value for name, value in state.items()},
        "fewer": {name: value for name, value in state.items() if not name.startswith("2")},
        "wide": state | {"1.weight": torch.zeros(32, 33)},
        "nan": state | {"1.bias": torch.full((32,), torch.nan)},
        "number": state | {"1.bias": 3.0},
        "list": [state["0.weight"]],
    }[kind]
    torch.save(bad, tmp_path / "lens" / "params.pt")
    with pytest.raises(InputError, match=r"params\.pt (differs in the entries|has|holds)"):
        load_published_lens(tmp_path / "lens", tiny)


class Hostile:
    """Unpickled by an unrestricted reader, it writes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_pickle_is_refused_and_not_run(tiny: Model, tmp_path: Path, legacy: bool):
    state: dict = dict(publish(tmp_path / "lens", tiny))
    path, target = tmp_path / "lens" / "params.pt", tmp_path / "owned"
    state["0.bias"] = Hostile(target)
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"params\.pt cannot be read as tensors alone"):
        load_published_lens(tmp_path / "lens", tiny)
    path.write_bytes(pickle.dumps(state["0.bias"]))
    with pytest.raises(InputError, match=r"params\.pt cannot be read as tensors alone"):
        load_published_lens(tmp_path / "lens", tiny)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()


@pytest.mark.parametrize("name", ["config.json", "params.pt"])
@pytest.mark.parametrize("content", [None, b"", b"\x00\xff nothing", b"[1, 2]"])
def test_damaged_published_files_are_refused(tiny: Model, tmp_path: Path, name: str, content: bytes | None):
    publish(tmp_path / "lens", tiny)
    path = tmp_path / "lens" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=name):
        load_published_lens(tmp_path / "lens", tiny)
