"""What a logit really loses without each token of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens.base.text import storable
from lens.models.frozen import FrozenModel, freeze
from lens.models.model import Model, evaluation_mode
from lens.models.run import residual_states
from lens.probes.dataset import exact
from lens.probes.frozen_map import frozen_provenance, logit_weights, prompt_axes, target_tokens

SOURCE = "leaving one token out, as in You et al. 2025, When LRP Diverges from Leave-One-Out in Transformers, arXiv 2510.18810"
ABLATIONS = ("removed", "zeroed", "average")


def token_ablations(
    model: Model,
    text: str | Sequence[Any] | FrozenModel,
    *,
    target: int | str | None = None,
    rival: int | str | None = None,
    centred: bool = False,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """What the logit of a token after a prompt loses without each token of the prompt, nothing frozen.

    Args:
        model: in float32 or float64.
        text: a text, token ids, or what `freeze` gave for one; two tokens or more.
        target, rival, centred: which logit, as in `frozen_contributions`.
        check: called before every block of the passes; raising from it stops the work.

    Returns:
        Dataset with `effect[ablation, position]`, the logit less what it is then, in logit units. A token is `removed` (later
        ones move up; without the last one the answer is given one token earlier), or its embedding is `zeroed` or replaced by the
        `average` of the vocabulary. Position embeddings stay. `logit` is the whole prompt's.

    Memory: `layers · positions² · d` values.

    Raises:
        InputError: as in `frozen_contributions`. UnsupportedModelError: see `freeze`.
    """
    frozen = text if isinstance(text, FrozenModel) else freeze(model, text, check=check)
    count = len(frozen.token_ids)
    chosen, other = target_tokens(frozen, count - 1, target, rival)
    weights = logit_weights(frozen, chosen, other, centred)
    own = float(frozen.logits[-1].double() @ weights)
    left = [logits.double() @ weights.to(logits.device) for logits in _ablated(frozen, check)]
    names = model.vocabulary
    return xr.Dataset(
        {
            "effect": exact(
                ("ablation", "position"), own - np.stack([one.cpu().numpy() for one in left]), "loss of the logit", "logit"
            ),
            "logit": exact((), own, "the model's own logit", "logit"),
        },
        prompt_axes(frozen) | {"ablation": np.array(ABLATIONS, dtype=object)},
        {
            "source": SOURCE,
            "probe": "token_ablations",
            "target": storable(names[chosen]),
            "target_id": chosen,
            "rival_id": -1 if other is None else other,
            "centred": int(centred),
            **frozen_provenance(frozen),
        },
    )


def _ablated(frozen: FrozenModel, check: Callable[[], None] | None) -> list[Tensor]:
    """The last logits without each token, `[position, vocab]`, in the order of `ABLATIONS`."""
    model, count = frozen.model, len(frozen.token_ids)
    ids = torch.tensor(frozen.token_ids)
    without = torch.stack([torch.cat([ids[:place], ids[place + 1 :]]) for place in range(count)])
    with model.lock.hold(f"taking tokens away from {model.name}"), evaluation_mode(model.module):
        removed = residual_states(model.module, model.anatomy, without, check)[-1, :, -1]
    found = [model.unembed(removed)]
    mean = _average_embedding(frozen)
    for other in (torch.zeros_like(mean), mean):
        inputs = frozen.embedding.repeat(count, 1, 1)
        inputs[torch.arange(count), torch.arange(count)] = other
        hidden = frozen.unfrozen(inputs, check=check).hidden[:, -1].detach()
        with torch.no_grad():
            found.append(model.readout.transform(model.anatomy.head(hidden)))
    return found


def _average_embedding(frozen: FrozenModel) -> Tensor:
    """Mean over the vocabulary, at the scale that the model gives its embeddings."""
    table = frozen.model.anatomy.embedding.weight.detach()
    bare = table[list(frozen.token_ids)]
    scale = (frozen.embedding * bare).sum() / (bare * bare).sum()
    return table.mean(0) * scale
