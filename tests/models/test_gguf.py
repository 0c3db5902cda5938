"""The GGUF converter against transformers' own loader, against the model a file was made from, and against bad files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import lens.models.gguf as converter
from lens.base.errors import InputError, UnsupportedModelError
from lens.base.files import sha256
from lens.base.progress import Step
from lens.models.gguf import convert_gguf, estimate_gguf_memory, gguf_architecture

HEADS, KV_HEADS, LAYERS = 4, 2, 2
TEMPLATE = "{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}"
MERGES = ["t h", "th e", "Ġ a", "Ġ Ġ", "1 2", "Ġ 1"]
TOKENS = ["<|start|>", "<|end|>", *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
STEMS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
F32, Q8_0, Q4_1 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1


def tiny_llama(tied: bool = True) -> LlamaForCausalLM:
    """A random Llama with grouped heads, every parameter drawn, norms and head included."""
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=16, max_position_embeddings=128, rms_norm_eps=2.0**-10,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, tie_word_embeddings=tied,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(3)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.ndim == 1 else 0.0, 0.3)
    return model


def gguf_name(name: str) -> str:
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in outer:
        return f"{outer[stem]}.weight"
    _, _, block, part = stem.split(".", 3)
    return f"blk.{block}.{STEMS[part]}.weight"


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """The order in which llama.cpp's own converter writes query and key rows."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def tensors_of(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    state = {
        name: value
        for name, value in model.state_dict().items()
        if name != "lm_head.weight" or not model.config.tie_word_embeddings
    }
    arrays = {gguf_name(name): value.numpy() for name, value in state.items()}
    for block in range(LAYERS):
        for part, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS)):
            name = f"blk.{block}.{part}.weight"
            arrays[name] = interleaved(arrays[name], heads)
    return arrays


def write_gguf(path: Path, tensors: dict[str, np.ndarray], quantised: bool = True, **settings: Any) -> Path:
    """Write a GGUF file; `settings` replace metadata by key, with dots as double underscores, and None leaves one out."""
    values: dict[str, Any] = {
        "llama.context_length": 128, "llama.block_count": LAYERS, "llama.embedding_length": 64, "llama.feed_forward_length": 96,
        "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KV_HEADS, "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 5000.0, "llama.attention.layer_norm_rms_epsilon": 2.0**-10, "llama.vocab_size": len(TOKENS),
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(TOKENS) - 2), "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    values |= {key.replace("__", "."): value for key, value in settings.items()}
    writer = gguf.GGUFWriter(path, values.pop("general.architecture", "llama"))
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in values.items():
        if value is not None:
            adders[type(value)](key, value)
    for index, (name, value) in enumerate(tensors.items()):
        kind = (Q4_1 if index % 2 else Q8_0) if quantised and value.ndim == 2 else F32
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tiny_gguf(path: Path, tied: bool = True, quantised: bool = True, **settings: Any) -> Path:
    return write_gguf(path, tensors_of(tiny_llama(tied)), quantised, **settings)


def opened(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(100)[None] % len(TOKENS)).logits


def assert_same(ours: LlamaForCausalLM, theirs: LlamaForCausalLM) -> None:
    left, right = ours.state_dict(), theirs.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert torch.equal(logits(ours), logits(theirs))


@pytest.mark.parametrize("tied", [True, False])
def test_conversion_equals_the_librarys_loader(tmp_path: Path, tied: bool) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", tied)
    convert_gguf(source, tmp_path / "out")
    ours, theirs = opened(tmp_path / "out"), opened(tmp_path, gguf_file=source.name)
    assert_same(ours, theirs)
    assert ours.config.tie_word_embeddings is tied
    for field in (
        "rope_parameters",
        "rms_norm_eps",
        "head_dim",
        "max_position_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ):
        assert getattr(ours.config, field) == getattr(theirs.config, field), field


def test_unquantised_file_gives_back_the_model_it_was_made_from(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", tied=False, quantised=False)
    convert_gguf(source, tmp_path / "out")
    assert_same(opened(tmp_path / "out"), tiny_llama(tied=False))


def test_pieces_do_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    convert_gguf(source, tmp_path / "whole")
    monkeypatch.setattr(converter, "_PIECE_BYTES", 4096)
    steps: list[Step] = []
    convert_gguf(source, tmp_path / "pieces", steps.append)
    assert len(steps) > LAYERS * 9 + 2
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total
    assert sha256(tmp_path / "pieces/model.safetensors") == sha256(tmp_path / "whole/model.safetensors")


def test_tokenizer_splits_digits_singly_and_keeps_template_and_specials(tmp_path: Path) -> None:
    convert_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize("the<|end|>") == ["the", "<|end|>"]
    assert tokenizer("the").input_ids == [TOKENS.index("the")]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|start|>", "<|end|>", "<|end|>")
    assert tokenizer.apply_chat_template([{"content": "a"}], tokenize=False) == "<|start|>a<|end|>"
    assert tokenizer.decode(tokenizer("é 中 , 'x'  the").input_ids) == "é 中 , 'x'  the"
    assert tokenizer.model_max_length == 128
    assert len(tokenizer) == len(TOKENS)
    assert max(tokenizer("<|endoftext|>").input_ids) < len(TOKENS)


def test_tokenizer_adds_bos_where_the_file_says_so(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__add_bos_token=True, tokenizer__ggml__pre="gpt-2")
    convert_gguf(source, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the").input_ids == [0, TOKENS.index("the")]
    assert tokenizer.tokenize("a 12") == ["a", "Ġ", "12"]


@pytest.mark.parametrize(("flag", "start"), [(None, [1]), (True, [1]), (False, [])])
def test_sentencepiece_vocabularies_add_bos_unless_told_otherwise(tmp_path: Path, flag: bool | None, start: list[int]) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "e"]
    tensors = tensors_of(tiny_llama())
    settings = {
        "tokenizer__ggml__model": "llama", "tokenizer__ggml__pre": None, "tokenizer__ggml__merges": None,
        "tokenizer__ggml__tokens": pieces, "tokenizer__ggml__token_type": [2, 3, 3] + [6] * 256 + [1] * 4,
        "tokenizer__ggml__scores": [0.0] * 259 + [-1.0, -2.0, -3.0, -4.0], "tokenizer__ggml__bos_token_id": 1,
        "tokenizer__ggml__eos_token_id": 2, "tokenizer__ggml__unknown_token_id": 0, "tokenizer__ggml__add_bos_token": flag,
    }  # fmt: skip
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", tensors, **settings), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the").input_ids == start + [pieces.index(piece) for piece in ("▁", "t", "h", "e")]
    assert tokenizer("é").input_ids[-2:] == [3 + 0xC3, 3 + 0xA9]


def test_files_beside_the_source_are_not_read(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "pad_token": "the"}')
    (tmp_path / "chat_template.jinja").write_text("another model's")
    convert_gguf(source, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.pad_token, tokenizer.chat_template) == ("<|end|>", TEMPLATE)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"general__architecture": "qwen2"}, "'qwen2'.*'llama'.*transformers' own loader"),
        ({"llama__rope__scaling__type": "linear"}, "rope.scaling.type to 'linear'"),
        ({"llama__rope__scaling__factor": 8.0}, "rope.scaling.factor to 8.0"),
        ({"llama__expert_count": 8}, "expert_count to 8"),
        ({"llama__attention__sliding_window": 64}, "attention.sliding_window to 64"),
        ({"llama__attention__head_count_kv": [2, 1]}, "no single positive number for attention.head_count_kv"),
        ({"llama__embedding_length": None}, "no single positive number for embedding_length"),
        ({"llama__rope__dimension_count": 8}, "rope.dimension_count 8.*16"),
        ({"llama__feed_forward_length": 64}, r"shape \(96, 64\).*\(64, 64\)"),
        ({"llama__block_count": 3}, "lacks blk.2.attn_k.weight and 8 more"),
        ({"llama__vocab_size": 7}, "vocab_size, 7"),
        ({"tokenizer__ggml__pre": "mystery"}, "'mystery'"),
        ({"tokenizer__ggml__model": "bert"}, "kind 'bert'"),
        ({"tokenizer__ggml__merges": None}, "tokenizer that cannot be built"),
    ],
)  # fmt: skip
def test_what_cannot_be_represented_is_refused(tmp_path: Path, settings: dict[str, Any], found: str) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", **settings)
    with pytest.raises(UnsupportedModelError, match=found):
        convert_gguf(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_neutral_settings_are_accepted(tmp_path: Path) -> None:
    settings = {"llama__rope__scaling__type": "none", "llama__expert_count": 0, "llama__attention__key_length": 16}
    convert_gguf(write_tiny_gguf(tmp_path / "tiny.gguf", **settings), tmp_path / "out")
    assert opened(tmp_path / "out").config.head_dim == 16


@pytest.mark.parametrize(
    ("name", "size", "found"), [("rope_freqs.weight", 8, "rotary freq"), ("blk.0.attn_q.bias", 64, "also holds")]
)
def test_tensors_without_a_place_are_refused(tmp_path: Path, name: str, size: int, found: str) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", tensors_of(tiny_llama()) | {name: np.ones(size, np.float32)})
    with pytest.raises(UnsupportedModelError, match=found):
        convert_gguf(source, tmp_path / "out")


def test_a_file_cut_anywhere_is_one_clear_error(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    source = tmp_path / "cut.gguf"
    for length in [0, 3, 4, 7, 20, 30, 100, *range(500, len(whole), 3001), len(whole) - 64]:
        source.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.gguf"):
            convert_gguf(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "tiny.gguf"]


def test_a_damaged_header_never_leaks_another_error(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    source, random = tmp_path / "bad.gguf", np.random.default_rng(1)
    for position in random.integers(4, 1500, 40):
        bad = bytearray(whole)
        bad[position] ^= 0xFF
        source.write_bytes(bad)
        for use in (gguf_architecture, estimate_gguf_memory):
            with contextlib.suppress(InputError):
                use(source)


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip file", b"GGUF", b"GGUF" + b"\xff" * 200])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "other.gguf"
    source.write_bytes(content)
    for use in (gguf_architecture, estimate_gguf_memory):
        with pytest.raises(InputError, match=r"other\.gguf"):
            use(source)


def test_missing_source_and_existing_target_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No file"):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "out")
    with pytest.raises(InputError, match="exists"):
        convert_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path)


def test_architecture_and_memory_are_read_from_the_header(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", general__architecture="qwen2")
    assert gguf_architecture(source) == "qwen2"
    assert estimate_gguf_memory(source) == 8 * sum(p.numel() for p in tiny_llama().parameters())


def test_real_model_is_the_one_the_librarys_loader_gives(smollm2_folder: Path) -> None:
    # The hash of the file whose tensors and logits were found equal, bit for bit, to transformers' loader of the same GGUF.
    assert sha256(smollm2_folder / "model.safetensors") == "3452f06bd3599200f8133d54cb1cb52ba8d6c3e43c3417d86877400feaffcc0a"
    tokenizer, model = AutoTokenizer.from_pretrained(smollm2_folder), opened(smollm2_folder)
    with torch.no_grad():
        values, ids = model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1].topk(2)
    assert tokenizer.decode(ids[0]) == " Paris"
    assert values.tolist() == pytest.approx([17.37, 14.89], abs=0.01)


def test_real_tokenizer_splits_digits_singly(smollm2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    assert tokenizer.tokenize("In 2024, 1,234.56") == ["In", "Ġ", *"2024", ",", "Ġ", "1", ",", *"234", ".", *"56"]
    assert tokenizer.tokenize("a  2024") == ["a", "ĠĠ", "2", "0", "2", "4"]
    assert tokenizer.chat_template.startswith("{% for message in messages %}")
