"""One subject's state changed in the live model, so that the model should answer as for another subject."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens.models.edits.order import change_states
from lens.models.model import Model
from lens.probes.dataset import texts, variable
from lens.probes.relation_map import SOURCE, RelationMap
from lens.probes.relations import Answer

_TOP = 5  # words of the model, before and after the edit, that are kept beside the objects


def edited_words(
    model: Model,
    editing: RelationMap,
    study: xr.Dataset,
    one: Answer,
    other: Answer,
    *,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """What model, map and edited model say to one prompt.

    The edit adds `W⁺(o′ − o)` to the state of the subject's last token at the map's layer, for one pass; the model is then as
    it was.

    Args:
        model: the model.
        editing: the map whose inverse makes the edit, of layer 1 or higher.
        study: from `relation_layers`, with this subject among its tests.
        one: the prompt that is edited.
        other: of the subject whose answer the edited model should give.
        check: called before every block.

    Returns:
        Dataset over `token` (first tokens of all objects, and the model's five likeliest, before and after; `token_text`,
        `token_id`): probabilities `model`, `edited`, and `mapped[layer, token]`, NaN where the study did not keep it. Scalars
        `said` and `says` (the top token before and after), `edit_size` (length of the change over that of the state).

    Raises:
        InputError: another model.
    """
    editing.require_model(model)
    change = editing.edit(other.output - one.output)
    prompt = list(one.token_ids)

    def add(states: Tensor) -> Tensor:
        states = states.clone()
        states[:, one.position] += change.to(states)
        return states

    plain = model.unembed(one.output).float().softmax(-1)
    with change_states(model, [editing.layer], add):
        edited = model.unembed(model.run(prompt, logits=False, check=check).residual[-1, -1]).float().softmax(-1)
    kept = study.candidate_id.to_numpy().tolist()
    tokens = list(dict.fromkeys([*kept, *plain.topk(_TOP).indices.tolist(), *edited.topk(_TOP).indices.tolist()]))
    number = study.subject_text.to_numpy().tolist().index(one.pair[0])
    mapped = np.full((study.sizes["layer"], len(tokens)), np.nan)
    mapped[:, : len(kept)] = np.exp(study.logprob.isel(subject=number).to_numpy())
    size = float(change.norm() / one.states[editing.layer].norm())
    places = torch.tensor(tokens)
    return xr.Dataset(
        {
            "model": variable(("token",), plain.cpu()[places], "probability"),
            "edited": variable(("token",), edited.cpu()[places], "probability in the edited model"),
            "mapped": variable(("layer", "token"), mapped, "probability under the map"),
            "said": texts((), model.vocabulary[int(plain.argmax())], "top token"),
            "says": texts((), model.vocabulary[int(edited.argmax())], "top token of the edited model"),
            "edit_size": variable((), np.asarray(size), "length of the change over that of the state"),
        },
        coords={
            "token_text": texts(("token",), [model.vocabulary[i] for i in tokens], "token"),
            "token_id": variable(("token",), np.array(tokens), "token id"),
            "layer": study.layer,
        },
        attrs={"source": SOURCE, "probe": "edited_words", "edit_layer": editing.layer, "rank": editing.rank,
               "subject": one.pair[0], "target": other.pair[0], **model.provenance()},
    )  # fmt: skip
