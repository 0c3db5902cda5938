"""GGUF files of the Llama architecture, turned into a Hugging Face folder without holding the model in memory.

A GGUF file stores quantised weights under llama.cpp's names, with the rows of the query and key matrices
in the order of interleaved rotary pairs. This converter expands them to float32 piece by piece, puts the rows
back and writes safetensors as it goes. What the Llama classes of transformers cannot express exactly (scaled rotary
frequencies, experts, biases, unknown ways of splitting text) is refused.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lens.base.errors import InputError, UnsupportedModelError
from lens.base.files import atomic_folder
from lens.base.progress import Progress, Step, quiet

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from transformers import LlamaConfig

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_READ_KEYS = {
    "context_length", "block_count", "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base",
}  # fmt: skip
# Keys that change nothing while they hold these values; None stands for any value.
_NEUTRAL_KEYS = {"rope.scaling.type": "none", "expert_count": 0, "expert_used_count": 0, "tensor_data_layout": None}
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r"}
_LLAMA3 = {"llama3", "llama-v3", "llama-bpe", "falcon3"}
_PIECE_BYTES = 8 * 2**20


def convert_gguf(source: Path, target: Path, progress: Progress = quiet) -> None:
    """Convert a Llama-architecture GGUF file to a Hugging Face folder in float32.

    The folder holds `config.json`, `model.safetensors` and the tokenizer's files, and its tensors equal bit for bit
    those of transformers' own GGUF loader. Besides the libraries themselves, memory stays at a few pieces
    of 8 MiB, whatever the size of the model. On disk the result takes four bytes per weight.

    Args:
        source: the GGUF file.
        target: the folder to make; it must not exist and appears only when it is complete.
        progress: called with the bytes written so far.

    Raises:
        InputError: `source` is missing, not GGUF, cut short or damaged, or `target` exists.
        UnsupportedModelError: the file holds something that cannot be represented exactly.
    """
    if target.exists():
        raise InputError(f"{target} exists", "a folder that does not exist yet", "another target, or removing it")
    with atomic_folder(target) as folder:
        write_model_folder(source, folder, progress)


def write_model_folder(source: Path, folder: Path, progress: Progress = quiet) -> None:
    """Do the work of `convert_gguf` inside an existing empty folder, for callers who add files of their own."""
    metadata, config, plan = _examine(source)
    _write_tokenizer(source, metadata, config, folder)
    config.save_pretrained(folder)
    _write_tensors(plan, folder / "model.safetensors", progress)


def gguf_architecture(source: Path) -> str:
    """Name of the architecture that a GGUF file declares, such as `llama`.

    Raises:
        InputError: the file is missing, not GGUF, cut short or damaged.
    """
    return str(_scalars(_open(source)).get("general.architecture", "unknown"))


def estimate_gguf_memory(source: Path) -> int:
    """Bytes of memory that transformers' own loader needs for a GGUF file of any architecture.

    It holds all tensors in float32 while it copies them into the model: twice four bytes per weight.

    Raises:
        InputError: the file is missing, not GGUF, cut short or damaged.
    """
    return sum(int(tensor.n_elements) for tensor in _open(source).tensors) * 4 * 2


def _examine(source: Path) -> tuple[dict[str, Any], LlamaConfig, list[_Planned]]:
    """All that the conversion needs; the reader, which holds every token as an array, does not outlive this call."""
    reader = _open(source)
    metadata = _scalars(reader)
    config = _config(source.name, reader, metadata)
    return metadata, config, _plan(source.name, reader, config)


def _open(source: Path) -> GGUFReader:
    from gguf import GGUFReader

    if not source.is_file():
        raise InputError(f"No file at {source}", "a GGUF file", "checking the path")
    with open(source, "rb") as stream:
        start = stream.read(4)
    if start != b"GGUF":
        raise InputError(f"{source.name} starts with {start!r}", "a GGUF file, which starts with b'GGUF'", "another file")
    try:
        reader = GGUFReader(source)
    except Exception as error:  # The parser meets arbitrary bytes here, and what it raises then is not specified.
        raise _damaged(source.name, error) from error
    if reader.byte_order != "I":
        raise UnsupportedModelError(f"{source.name} is in the other byte order", "this machine's byte order", "another file")
    return reader


def _damaged(name: str, reason: object) -> InputError:
    line = (str(reason).splitlines() or [type(reason).__name__])[0]
    return InputError(f"{name} is cut short or damaged ({line})", "a complete GGUF file", "fetching it again")


def _scalars(reader: GGUFReader) -> dict[str, Any]:
    """All metadata but arrays; a list per layer thus counts as absent, which is refused where a number is needed."""
    from gguf import GGUFValueType

    fields = {key: field for key, field in reader.fields.items() if field.types[:1] != [GGUFValueType.ARRAY]}
    try:
        return {key: field.contents() for key, field in fields.items()}
    except (ValueError, IndexError) as error:
        raise _damaged("The file", error) from error


def _refuse(name: str, found: str, needed: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{name} {found}", needed, "opening the original model by its hub id")


def _config(name: str, reader: GGUFReader, metadata: dict[str, Any]) -> LlamaConfig:
    """The configuration that the metadata describes, after all that it could not express has been refused."""
    from transformers import LlamaConfig

    _check_architecture(name, reader, metadata)
    heads, hidden = _number(name, metadata, "attention.head_count"), _number(name, metadata, "embedding_length")
    head_dim = metadata.get("llama.attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := metadata.get(f"llama.{key}", head_dim)) != head_dim:
            raise _refuse(name, f"has {key} {size}", f"the head size, {head_dim}")
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    vocabulary = shapes.get("token_embd.weight", [0, 0])[-1]
    if (stated := metadata.get("llama.vocab_size", vocabulary)) != vocabulary:
        raise _refuse(name, f"has {vocabulary} embeddings", f"vocab_size, {stated}")
    kv_key = "attention.head_count_kv" if "llama.attention.head_count_kv" in reader.fields else "attention.head_count"
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=_number(name, metadata, "feed_forward_length"),
        num_hidden_layers=_number(name, metadata, "block_count"),
        num_attention_heads=heads,
        num_key_value_heads=_number(name, metadata, kv_key),
        head_dim=head_dim,
        max_position_embeddings=_number(name, metadata, "context_length"),
        rms_norm_eps=_number(name, metadata, "attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": metadata.get("llama.rope.freq_base", 10000.0)},
        tie_word_embeddings="output.weight" not in shapes,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
        dtype="float32",
    )


def _check_architecture(name: str, reader: GGUFReader, metadata: dict[str, Any]) -> None:
    found = metadata.get("general.architecture", "unknown")
    if found != "llama":
        hint = "transformers' own loader (gguf_file=...), which handles other architectures"
        raise UnsupportedModelError(f"{name} is of the architecture {found!r}", "'llama'", hint)
    for full_key in (key for key in reader.fields if key.startswith("llama.")):
        key = full_key.removeprefix("llama.")
        neutral = key in _NEUTRAL_KEYS and _NEUTRAL_KEYS[key] in (None, metadata.get(full_key))
        if key not in _READ_KEYS and not neutral:
            raise _refuse(name, f"sets {key} to {metadata.get(full_key, 'a list')!r}", "a plain Llama, which has no such setting")
    if any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise _refuse(name, "scales its rotary frequencies (rope_freqs.weight)", "unscaled frequencies")


def _number(name: str, metadata: dict[str, Any], key: str) -> Any:
    value = metadata.get(f"llama.{key}")
    if not isinstance(value, int | float) or value <= 0:
        raise _refuse(name, f"has no single positive number for {key}", "one number for all layers")
    return value


@dataclass(frozen=True)
class _Planned:
    """One tensor of the result: its name, its source, and the head size if its rows are rotary pairs."""

    name: str
    tensor: ReaderTensor
    shape: tuple[int, ...]
    pairs_of: int | None


def _plan(name: str, reader: GGUFReader, config: LlamaConfig) -> list[_Planned]:
    """Pair every tensor of the file with its place in the model, or refuse: none missing, none left over."""
    stems = {old: new for old, new in _OUTER.items() if old != "output" or not config.tie_word_embeddings}
    for block in range(config.num_hidden_layers):
        stems |= {f"blk.{block}.{old}": f"model.layers.{block}.{new}" for old, new in _BLOCK.items()}
    names = {f"{old}.weight": f"{new}.weight" for old, new in stems.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if odd := sorted(names.keys() ^ tensors.keys()):
        verb = "lacks" if odd[0] in names else "also holds"
        raise _refuse(name, f"{verb} {odd[0]}" + (f" and {len(odd) - 1} more" if odd[1:] else ""), "the tensors of a plain Llama")
    _check_encodings(name, tensors.values())
    return [_planned(name, new, tensors[old], config) for old, new in names.items()]


def _planned(file_name: str, name: str, tensor: ReaderTensor, config: LlamaConfig) -> _Planned:
    shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
    expected = _expected_shape(name, config)
    if shape != expected:
        raise _refuse(file_name, f"holds {tensor.name} of shape {shape}", f"{expected}")
    rotated = name.endswith(("q_proj.weight", "k_proj.weight"))
    return _Planned(name, tensor, shape, config.head_dim if rotated else None)


def _expected_shape(name: str, config: LlamaConfig) -> tuple[int, ...]:
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim or 0
    kv_heads = config.num_key_value_heads or config.num_attention_heads
    queries, keys, vocabulary = config.num_attention_heads * head_dim, kv_heads * head_dim, config.vocab_size
    rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "o_proj": hidden, "down_proj": hidden}
    rows |= {"gate_proj": inner, "up_proj": inner, "embed_tokens": vocabulary, "lm_head": vocabulary}
    part = name.split(".")[-2]
    return (rows[part], {"o_proj": queries, "down_proj": inner}.get(part, hidden)) if part in rows else (hidden,)


def _check_encodings(name: str, tensors: Any) -> None:
    """Expand one row of each kind of encoding, so that an unknown one is refused before anything is written."""
    from gguf import dequantize

    for kind, tensor in {tensor.tensor_type: tensor for tensor in tensors}.items():
        try:
            dequantize(tensor.data[:1], kind)
        except NotImplementedError:
            raise _refuse(name, f"encodes {tensor.name} as {kind.name}", "an encoding that the gguf library can expand") from None


def _write_tensors(plan: list[_Planned], path: Path, progress: Progress) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for planned in plan:
        start, end = end, end + 4 * math.prod(planned.shape)
        header[planned.name] = {"dtype": "F32", "shape": list(planned.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    written = 0.0
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for planned in plan:
            for rows in _expanded(planned):
                written += stream.write(rows.tobytes())
                progress(Step(written, float(end), "B", "Converting"))


def _expanded(planned: _Planned) -> Iterator[np.ndarray]:
    """The tensor in float32, a few rows at a time; pieces are whole heads, because the rows move within a head."""
    from gguf import dequantize

    tensor, unit = planned.tensor, planned.pairs_of or 1
    data = np.atleast_2d(tensor.data)
    step = unit * max(1, _PIECE_BYTES // (4 * unit * planned.shape[-1]))
    for start in range(0, len(data), step):
        rows = dequantize(data[start : start + step], tensor.tensor_type)
        yield np.asarray(_unpaired(rows, unit) if planned.pairs_of else rows, dtype="<f4")


def _unpaired(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows (0, d/2, 1, d/2 + 1, …) of each head back in the order (0, 1, …, d - 1)."""
    return rows.reshape(-1, head_dim // 2, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _write_tokenizer(source: Path, metadata: dict[str, Any], config: LlamaConfig, folder: Path) -> None:
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind not in ("gpt2", "llama"):
        raise _refuse(source.name, f"has a tokenizer of the kind {kind!r}", "byte-level BPE ('gpt2') or SentencePiece ('llama')")
    try:
        tokenizer = library_tokenizer(source)
    except Exception as error:  # The library assumes well-formed vocabularies and fails on others in any way.
        raise _refuse(source.name, f"has a tokenizer that cannot be built ({error!r})", "a complete vocabulary") from error
    if kind == "gpt2":
        _repair_split(source.name, tokenizer, split)
    adds_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or split in _LLAMA3))
    tokenizer.add_bos_token = adds_bos
    if (tokenizer("a").input_ids[0] == tokenizer.bos_token_id) != adds_bos:
        raise _refuse(source.name, f"sets add_bos_token to {adds_bos}", "a tokenizer that follows it")
    known = 1 + max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values())
    if known > config.vocab_size:
        raise _refuse(source.name, f"has {known} tokens", f"at most {config.vocab_size}, one per embedding")
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    _drop_invented_tokens(folder / "tokenizer.json", known)


def _repair_split(name: str, tokenizer: Any, split: str | None) -> None:
    """Split text before the merges as the vocabulary was learned; the library leaves GPT-2's rule where it knows none."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    if split in _SINGLE_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif split in _LLAMA3 and not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        # These vocabularies hold words that their merges never build.
        backend.model.ignore_merges = True
    elif split != "gpt-2":
        raise _refuse(name, f"splits text by the rule {split!r}", "a rule that is known exactly")


def library_tokenizer(source: Path) -> Any:
    from transformers import AutoTokenizer

    # In a folder of its own, because the library would also read tokenizer files that lie beside it.
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "model.gguf"
        try:
            link.symlink_to(source.resolve())
        except OSError:  # Windows lets few users make links.
            shutil.copyfile(source, link)
        return AutoTokenizer.from_pretrained(folder, gguf_file=link.name)


def _drop_invented_tokens(file: Path, known: int) -> None:
    """Remove added tokens that the GGUF file does not hold: the library adds GPT-2's own, with an id past the embeddings."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < known]
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
