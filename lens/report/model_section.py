"""The model itself: whether it can be read faithfully, and what it is made of."""

from __future__ import annotations

from typing import Any

from lens.figures.report import Section, Table
from lens.models.model import Model
from lens.report.work import Work

_SIZES = {
    "query heads": ("num_attention_heads", "n_head"),
    "key and value heads": ("num_key_value_heads", "num_kv_heads"),
    "width of a head": ("head_dim",),
    "width inside the MLP": ("intermediate_size", "ffn_dim", "n_inner"),
}


def section(work: Work) -> Section:
    """Self-checks and anatomy."""
    model = work.model
    checks = model.checks()
    proof = model.readout_check
    off = f"to within {proof.relative_error:.2g} of the largest (at most {proof.tolerance:.2g} is allowed)"
    exact = off if proof.relative_error else "exactly"
    return Section(
        "checks",
        "Self-checks",
        says=[
            f"The last state, read through the model's own norm and head, gives its logits {exact}; later tokens leave earlier "
            "logits alone, and all weights are finite. A model that fails any of these is not opened at all.",
        ],
        tables=[
            Table("checks", "Proved when the model was opened, and tried now", ("check", "finding"), list(checks.items())),
            Table("anatomy", "Its parts", ("part", "size"), list(_anatomy(model).items())),
        ],
        how="eight made-up token ids, with and without the hooks that all else on this page reads through.",
    )


def _anatomy(model: Model) -> dict[str, Any]:
    config = model.module.config.get_text_config()
    sizes = {name: next((getattr(config, key, None) for key in keys if getattr(config, key, None)), None)
             for name, keys in _SIZES.items()}  # fmt: skip
    return {
        "architecture": type(model.module).__name__,
        "blocks": model.n_layers,
        "width of the residual stream": model.d_model,
        **{name: size for name, size in sizes.items() if size is not None},
        "vocabulary": model.vocab_size,
        "context": "not bounded" if model.context is None else model.context,
        "parameters": sum(weight.numel() for weight in model.module.parameters()),
        "tokenizer": "none" if model.tokenizer is None else type(model.tokenizer).__name__,
    }
