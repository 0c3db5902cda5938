"""Random-weight models of many families, built from configs, with every parameter and scale made to matter.

Defaults hide mistakes: gains start at one, biases at zero, soft-caps far above the logits. So every
parameter is drawn at random and the head is scaled until logits reach ±60.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import lens.models.three_phase  # noqa: F401  (so that transformers knows the family)

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

_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
_MLA = {
    **_LLAMA, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 6,
    "v_head_dim": 10, "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 2,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0],
}  # fmt: skip

# More ways to rotate, for the tests of rotary tables and heads alone.
ROTARY_FAMILIES: dict[str, tuple[str, dict]] = {
    "llama-linear": ("llama", {**_LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-dynamic": ("llama", {**_LLAMA, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-yarn": ("llama", {**_LLAMA, "rope_parameters": _YARN}),
    "llama-llama3": ("llama", {**_LLAMA, "rope_parameters": _LLAMA3}),
    "hunyuan-alpha": ("hunyuan_v1_dense", {
        **_LLAMA, "head_dim": 8,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 8.0, "factor": 1.0},
    }),
    "phi3-longrope": ("phi3", {**_LLAMA, "original_max_position_embeddings": 16, "rope_parameters": _LONGROPE}),
    "gemma3-both": ("gemma3_text", {
        **_LLAMA, "head_dim": 16, "sliding_window": 4, "layer_types": _TYPES, "query_pre_attn_scalar": 8,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    }),
    "gemma4": ("gemma4_text", {
        **_LLAMA, "head_dim": 8, "global_head_dim": 16, "sliding_window": 4, "layer_types": _TYPES[:2] * 2,
        "num_hidden_layers": 4, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0,
    }),
    "smollm3": ("smollm3", {**_LLAMA, "no_rope_layers": [1, 0, 1]}),
    "exaone4": ("exaone4", {**_LLAMA, "sliding_window": 4, "layer_types": _TYPES}),
    "cohere2": ("cohere2", {**_LLAMA, "sliding_window": 4, "layer_types": _TYPES}),
    "glm": ("glm", {**_LLAMA, "head_dim": 16, "partial_rotary_factor": 0.5}),
    "neox-wide": ("gpt_neox", {**_NEOX, "num_attention_heads": 2, "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "stablelm-wide": ("stablelm", {**_LLAMA, "num_attention_heads": 2, "partial_rotary_factor": 0.5}),
    "codegen": ("codegen", {**_GPT2, "rotary_dim": 4}),
    "ernie": ("ernie4_5", _LLAMA),
    "persimmon": ("persimmon", {**_NEOX, "num_attention_heads": 2}),
    "gpt-oss": ("gpt_oss", {
        **_LLAMA, "head_dim": 16, "sliding_window": 4, "layer_types": _TYPES, "num_local_experts": 2, "num_experts_per_tok": 1,
        "rope_parameters": {**_YARN, "truncate": False, "rope_theta": 150000.0},
    }),
    "llama4": ("llama4_text", {
        **_LLAMA, "head_dim": 16, "intermediate_size_mlp": 48, "num_local_experts": 2, "no_rope_layers": [1, 0, 1],
        "attention_chunk_size": 32,
    }),
    "three-phase": ("three_phase", {**_LLAMA, "num_phases": 2, "horn": "learned", "embedding_multiplier": 2.5}),
    "deepseek-v2": ("deepseek_v2", _MLA),
    "deepseek-v3": ("deepseek_v3", {**_MLA, "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 1.0}}),
}  # fmt: skip


def build(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A randomised model of a family, in evaluation mode, whose largest head output is about 60."""
    kind, options = (FAMILIES | ROTARY_FAMILIES)[family]
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
