"""What the model as it stands makes of a text, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from lens.models.model import Model, evaluation_mode
from lens.models.run import residual_states

_ROWS = 128  # positions whose logits are made at once


def token_losses(model: Model, ids: Sequence[int], check: Callable[[], None] | None = None) -> np.ndarray:
    """−log p of each next token `[position − 1]`, nats, by the model as it stands, live edits included.

    Memory: the residual stream, and the logits of 128 positions.
    """
    with torch.no_grad(), model.lock.hold("measuring its loss", check), evaluation_mode(model.module):
        tokens = torch.tensor([list(ids)])
        states = residual_states(model.module, model.anatomy, tokens, check)[-1, 0, :-1]
        following = tokens[0, 1:].to(states.device)
        parts = [
            torch.nn.functional.cross_entropy(
                model.readout(states[at : at + _ROWS]).float(), following[at : at + _ROWS], reduction="none"
            )
            for at in range(0, len(states), _ROWS)
        ]
    return torch.cat(parts).double().cpu().numpy()
