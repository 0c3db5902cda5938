"""Random-weight models of many families, built from configs, with every parameter and scale made to matter.

Defaults hide mistakes: gains start at one, biases at zero, soft-caps far above the logits. So every
parameter is drawn at random and the head is scaled until logits reach ±60.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB = 128
_COMMON = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_NEOX = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}

FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", _LLAMA),
    "llama-tied": ("llama", {**_LLAMA, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**_LLAMA, "sliding_window": 4}),
    "mixtral": ("mixtral", {**_LLAMA, "num_local_experts": 2}),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", {**_LLAMA, "head_dim": 16}),
    "gemma": ("gemma", {**_LLAMA, "head_dim": 16}),
    "gemma2": ("gemma2", {**_LLAMA, "head_dim": 16, "final_logit_softcapping": 30.0, "sliding_window": 4}),
    "gemma3": ("gemma3_text", {**_LLAMA, "head_dim": 16, "final_logit_softcapping": 25.0, "sliding_window": 4}),
    "olmo2": ("olmo2", _LLAMA),
    "phi": ("phi", {**_LLAMA, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", _LLAMA),
    "stablelm": ("stablelm", _LLAMA),
    "cohere": ("cohere", {**_LLAMA, "logit_scale": 0.37}),
    "granite": ("granite", {**_LLAMA, "logits_scaling": 3.7, "residual_multiplier": 0.6, "embedding_multiplier": 2.5}),
    "gpt2": ("gpt2", _GPT2),
    "gpt-neox": ("gpt_neox", {**_NEOX, "tie_word_embeddings": False}),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 4, "tie_word_embeddings": False}),
    "opt": ("opt", {**_NEOX, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt-projected": ("opt", {**_NEOX, "ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "falcon": ("falcon", {**_NEOX, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("falcon", {**_NEOX, "alibi": True, "multi_query": False}),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
}


def build(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A randomised model of a family, in evaluation mode, whose largest head output is about 60."""
    kind, options = FAMILIES[family]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **_COMMON, **options), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if bool((parameter == 1).all()) else 0.0
            parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
        head = model.get_output_embeddings()
        seen = []
        with_hook = head.register_forward_hook(lambda _m, _i, output: seen.append(output.abs().max().item()))
        model(input_ids=torch.arange(1, 17)[None])
        with_hook.remove()
        head.weight.mul_(60 / seen[0])
        if head.bias is not None:
            head.bias.mul_(60 / seen[0])
    return model


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One word per id: `w0` … `w123`, and four special tokens."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(VOCAB - 4))]
    raw = Tokenizer(token_models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )  # fmt: skip
