"""Opening models from every kind of source, and every refusal with its own words."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, BertLMHeadModel

import lens
from lens.base.errors import DeviceError, InputError, ModelNotFoundError, UnsupportedModelError
from lens.models.load import default_device
from tests.models.families import build, word_tokenizer


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "tiny-llama"
    build("llama").save_pretrained(place)
    word_tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def offline(monkeypatch):
    """The hub switched off, as transformers and huggingface_hub read it at import."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_folder_gives_the_same_logits_as_the_live_module(folder):
    model = lens.load(folder)
    live = lens.load(build("llama"), word_tokenizer())
    assert model.name == "tiny-llama"
    assert torch.equal(model.run("w1 w2 w3").logits, live.run("w1 w2 w3").logits)


def test_same_source_gives_the_same_model_while_it_is_in_use(folder):
    model = lens.load(folder)
    assert lens.load(folder) is model
    assert lens.load(str(folder)) is model
    assert lens.load(folder, dtype="bfloat16") is not model


def test_dtype_is_applied_while_loading(folder):
    model = lens.load(folder, dtype="bfloat16")
    assert model.dtype_name == "bfloat16"
    # A cast after loading would round the rotary frequencies too.
    assert all(module.inv_freq.dtype == torch.float32 for module in model.anatomy.rotary)


def test_device_map_is_passed_on(folder):
    model = lens.load(folder, device_map={"": "cpu"})
    assert model.run("w1").residual.device.type == "cpu"


@pytest.mark.parametrize(
    ("devices", "rank", "expected"),
    [(0, None, "cpu"), (0, "3", "cpu"), (4, None, "cuda"), (4, "3", "cuda:3"), (1, "0", "cuda:0"), (1, "3", "cuda:0")],
)
def test_default_device_is_this_processes_own(monkeypatch, devices: int, rank: str | None, expected: str):
    """What a machine with so many devices would say; a launcher may also show each process its own one only."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert default_device() == expected


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_default_device_of_a_launched_process(monkeypatch, folder):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert lens.load(folder).device == torch.device("cuda:0")


def test_named_model_opens_from_the_cache(smollm2):
    assert smollm2.name == "smollm2-135m"
    assert lens.load("smollm2-135m", device="cpu") is smollm2
    assert smollm2.provenance()["model_revision"] == "b179c9523d0e"


@pytest.mark.parametrize("wrong", ["smollm2", "smollm-135m", "SmolLM2-135M"])
def test_unknown_name_lists_near_matches(wrong: str):
    with pytest.raises(ModelNotFoundError, match=r"Try: lens\.load\('smollm2-135m'\)"):
        lens.load(wrong)


def test_hub_id_goes_through_the_hub_and_says_so_when_it_cannot(offline):
    with pytest.raises(ModelNotFoundError, match="'nobody/nothing'.*reachable hub id"):
        lens.load("nobody/nothing")


@pytest.mark.parametrize("path", ["./not-here", "/not/here", "not-here.gguf"])
def test_missing_path_is_no_hub_id(path: str):
    with pytest.raises(ModelNotFoundError, match="checking the path"):
        lens.load(path)


def test_folder_without_config(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        lens.load(tmp_path)


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="has no weights"):
        lens.load(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="pickled weights"):
        lens.load(folder)


def test_folder_without_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelNotFoundError, match="no usable tokenizer"):
        lens.load(folder)
    assert lens.load(folder, word_tokenizer()).run("w1").tokens == ("w1",)


def test_truncated_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        lens.load(folder)


def test_code_from_a_folder_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "surprise", "auto_map": {"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(UnsupportedModelError, match="without code of its own"):
        lens.load(folder)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_encoder_in_a_folder(tmp_path):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = AutoConfig.for_model("bert", vocab_size=128, **shape)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="later token changes earlier logits"):
        lens.load(tmp_path)


def test_nan_in_a_folder(tmp_path):
    module = build("gpt2")
    with torch.no_grad():
        module.transformer.h[2].mlp.c_fc.bias[0] = torch.nan
    module.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"transformer\.h\.2\.mlp\.c_fc\.bias has 1 values"):
        lens.load(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none(folder):
    with pytest.raises(DeviceError, match=r"0 CUDA devices.*cuda.*device='cpu'"):
        lens.load(folder, device="cuda")


def test_unknown_device_and_dtype(folder):
    with pytest.raises(DeviceError, match="'abacus'"):
        lens.load(folder, device="abacus")
    with pytest.raises(InputError, match="'float7'"):
        lens.load(folder, dtype="float7")


def test_loading_is_silent(folder, capfd):
    lens.load(folder)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_unreadable_gguf(tmp_path):
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(lens.LensError, match=r"broken\.gguf"):
        lens.load(file)


def test_gguf_file_gives_the_named_model(tmp_path, monkeypatch):
    from tests.models.test_gguf import write_tiny_gguf

    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    model = lens.load(write_tiny_gguf(tmp_path / "tiny.gguf"))
    assert model.name == "tiny"
    assert model.readout_check.passed


def drop(folder, *names: str) -> None:
    """Take tensors out of a saved model."""
    from safetensors.torch import load_file, save_file

    kept = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name not in names}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_missing_tensor_is_refused_and_not_drawn_at_random(folder, name: str):
    drop(folder, name)
    with pytest.raises(UnsupportedModelError, match=name.replace(".", r"\.")):
        lens.load(folder)


@pytest.mark.parametrize(("layers", "words"), [(5, r"lacks model\.layers\.3"), (2, r"holds more than .* model\.layers\.2")])
def test_depth_that_the_weights_do_not_have_is_refused(folder, layers: int, words: str):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    with pytest.raises(UnsupportedModelError, match=words):
        lens.load(folder)


def test_tensor_of_another_shape_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(UnsupportedModelError, match="do not fit its configuration"):
        lens.load(folder)


def test_folder_that_was_saved_again_is_opened_again(folder):
    first = lens.load(folder)
    build("llama", seed=3).save_pretrained(folder)
    second = lens.load(folder)
    assert second is not first
    assert not torch.equal(second.run("w1 w2").logits, first.run("w1 w2").logits)


def test_relative_paths_mean_what_they_mean_now(tmp_path, monkeypatch):
    models = []
    for number in (1, 2):
        place = tmp_path / str(number)
        build("llama", seed=number).save_pretrained(place / "model")
        word_tokenizer().save_pretrained(place / "model")
        monkeypatch.chdir(place)
        models.append(lens.load("./model"))
    assert models[0] is not models[1]


def test_revision_of_what_has_none_is_refused(folder):
    with pytest.raises(InputError, match="revision"):
        lens.load(folder, revision="main")


def test_device_that_does_not_compute_is_refused(folder):
    with pytest.raises(DeviceError, match="does not answer"):
        lens.load(folder, device="meta")


def test_the_same_model_in_another_folder_has_the_same_fingerprint(tmp_path, tokenizer):
    """A fit that was saved opens wherever the model lies; another rotary base in the configuration is another model."""
    found = []
    for name in ("first", "second"):
        build("llama").save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        found.append(lens.load(tmp_path / name, device="cpu").fingerprint)
    assert found[0] == found[1]
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 7.0
    (tmp_path / "third").mkdir()
    for file in (tmp_path / "second").iterdir():
        (tmp_path / "third" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "third" / "config.json").write_text(json.dumps(config))
    assert lens.load(tmp_path / "third", device="cpu").fingerprint != found[0]
