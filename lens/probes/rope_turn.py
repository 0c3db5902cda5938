"""One head of a model whose rotary table was changed: what it attends to, before, after, and if its layer alone had been changed.

Turning the table of the whole model changes a head twice: its queries and keys are rotated by other angles, and they come
from states that the layers below have changed already. Queries and keys before rotation do not depend on their own layer's
table, so that the first effect alone follows from those of the trained model, without another forward pass.

Sources: Su et al., "RoFormer" (arXiv 2104.09864), section 3.4.1, equation 16: a rotation depends on positions alone. Olsson
et al., "In-context Learning and Induction Heads" (arXiv 2209.11895), for prefix matching.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from lens.base.errors import InputError
from lens.models.heads import HeadStates
from lens.models.run import Run
from lens.probes.dataset import prompt_coordinates, provenance, texts, variable

SOURCE = "arXiv 2104.09864, section 3.4.1, equation 16; arXiv 2209.11895 (prefix matching)"
SETTINGS = ("trained", "whole model turned", "this layer alone turned")


def turned_head(
    trained: Run, turned: Run, states: HeadStates, head: int, theta: Float[np.ndarray, " lane"], attention_factor: float = 1.0
) -> xr.Dataset:
    """Attention of one head under two rotary tables, and what the change of its own layer does to it.

    Args:
        trained: a run of the model as it is, with attention.
        turned: a run of the same tokens under an edit of the rotary table, with attention.
        states: queries and keys of the head's block, of the model as it is (`lens.models.heads.head_states`).
        head: 0 … heads − 1.
        theta: frequencies that stood in the block's table during the turned run; empty for a block that does not rotate.
        attention_factor: the turned table's factor on cos and sin.

    Returns:
        Dataset over `setting` (trained, whole model turned, this layer alone turned), with coordinates of the prompt:

        - `attention` over `[setting, query, key]`; the third is computed from `states`, and exact for this layer only;
        - over `[setting]`, means over all queries but the first, which sees itself alone: `moved`, the share of attention that
          stands elsewhere than in the trained model (half the summed differences, 0 to 1); `attended_distance`, tokens; and
          the attention given to the token before (`previous_token`) and to the first one (`first_token`);
        - `prefix_matching` over `[setting]`: the attention of repeated tokens to what followed their earlier copies, NaN in a
          text in which no token comes back.

    Raises:
        InputError: runs without attention or of different tokens, or no such head.
    """
    before, after = _comparable(trained, turned)
    if not 0 <= head < before.shape[1]:
        raise InputError(f"The head is {head}", f"0 to {before.shape[1] - 1}", "head=0")
    rotates = len(states.theta) > 0
    alone = states.pattern(head, theta=theta, attention_factor=attention_factor) if rotates else states.pattern(head)
    seen = [patterns[states.block, head].double().cpu().numpy() for patterns in (before, after)]
    patterns = np.stack([*seen, np.asarray(alone)])
    at = {name: value for name, value in prompt_coordinates(trained).items() if name != "layer"}
    return xr.Dataset(
        {
            "attention": variable(("setting", "query", "key"), patterns, "attention"),
            **_summaries(patterns, _after_copies(trained.token_ids).numpy()),
        },
        coords={"setting": texts(("setting",), SETTINGS, "rotary table"), **at},
        attrs=provenance(trained, SOURCE, {"probe": "turned_head", "block": states.block, "head": head}),
    )


def striking_head(trained: Run, turned: Run) -> tuple[int, int]:
    """Block and head worth looking at first: of the heads the one that follows repeated tokens most in the trained model.

    In a text in which no token comes back, it is the head whose attention the turn has moved most.

    Raises:
        InputError: runs without attention or of different tokens.
    """
    before, after = (patterns.float() for patterns in _comparable(trained, turned))
    copies = _after_copies(trained.token_ids).to(before.device)
    repeated = copies.any(-1)
    score = (before * copies).sum(-1)[..., repeated].mean(-1) if repeated.any() else (before - after).abs().sum((-2, -1))
    block, head = divmod(int(score.argmax()), score.shape[1])
    return block, head


def _comparable(trained: Run, turned: Run) -> tuple[Tensor, Tensor]:
    before, after = trained.attention, turned.attention
    if before is None or after is None or not torch.equal(trained.token_ids, turned.token_ids):
        needed = "two runs of the same tokens, with attention"
        raise InputError("The runs cannot be compared", needed, "model.run(text, attention=True)")
    return before, after


def _after_copies(token_ids: Tensor) -> Bool[Tensor, "query key"]:
    """Where a key follows an earlier copy of the query's token."""
    follows = torch.zeros((len(token_ids), len(token_ids)), dtype=torch.bool)
    follows[:, 1:] = token_ids[:, None] == token_ids[:-1]
    return follows.tril()


def _summaries(patterns: Float[np.ndarray, "setting query key"], copies: Bool[np.ndarray, "query key"]) -> dict[str, xr.Variable]:
    places = np.arange(patterns.shape[-1])
    seen, repeated = patterns[:, 1:], copies.any(-1)
    none = np.full(len(patterns), np.nan)
    found = {
        "moved": (np.abs(seen - seen[0]).sum(-1).mean(-1) / 2, "share of attention that stands elsewhere than as trained", "1"),
        "attended_distance": (
            (seen * (places[1:, None] - places).clip(0)).sum(-1).mean(-1),
            "mean distance to the tokens attended to",
            "tokens",
        ),
        "previous_token": (np.diagonal(patterns, -1, 1, 2).mean(-1), "attention to the token before", "1"),
        "first_token": (seen[..., 0].mean(-1), "attention to the first token", "1"),
        "prefix_matching": (
            (patterns * copies).sum(-1)[:, repeated].mean(-1) if repeated.any() else none,
            "attention of repeated tokens to what followed their earlier copies",
            "1",
        ),
    }
    return {name: variable(("setting",), *value) for name, value in found.items()}
