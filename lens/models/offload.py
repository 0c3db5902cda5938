"""Weights that `device_map` keeps on disk or in main memory, and brings to their module only while it runs."""

from __future__ import annotations

from torch import Tensor, nn

from lens.base.errors import UnsupportedModelError


def stored_weight(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of which the module itself holds no values, read from where accelerate's hooks keep it.

    Raises:
        UnsupportedModelError: no hook keeps it, so that there are no values at all.
    """
    path = name.split(".")
    for split in range(len(path) - 1, -1, -1):  # the hook is on the module itself, or on one that holds it
        hook = getattr(module.get_submodule(".".join(path[:split])), "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            weights = getattr(one, "weights_map", None)
            if weights is not None:
                return weights[".".join(path[split:])]
    raise UnsupportedModelError(f"The weight {name} has no values", "weights in memory or on disk", "loading the model again")
