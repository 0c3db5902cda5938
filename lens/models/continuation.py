"""The end of a prompt as a function of one residual state: values, and products with its Jacobian.

What stands before a token cannot depend on it. It is run once and kept as keys and values; the few tokens from that one
on are run with the graph of their gradients, and every product with a Jacobian is a walk along this short graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.anatomy import hooks_on
from lens.models.model import Model, evaluation_mode

_TOLERANCE = 1e-3  # of the last state, with and without kept keys and values, relative to its norm
_AT_ONCE = 64  # directions carried along the graph together
_COPIES = 32  # changed states run together


class Continuation:
    """The last state at a prompt's end, as a function of the state of one of its tokens at any layer.

    Args:
        model: the model.
        token_ids: the prompt.
        position: the token whose state is the variable, 0 … tokens − 1.
        output: of a plain run, where there was one; it is what going on from keys and values is checked against.

    Attributes:
        states: `[layer, d]`, the token's residual states.
        output: `[d]`, the state behind the last block at the last position, before the final norm.

    Cost: one pass over the prompt. Memory: keys and values of the prompt, and the graph of the tokens from `position` on.
    Where a model cannot go on from kept keys and values, the graph is that of the whole prompt.

    Raises:
        InputError: a position that the prompt does not have.
    """

    def __init__(self, model: Model, token_ids: Sequence[int], position: int, output: Float[Tensor, " d"] | None = None):
        if not 0 <= position < len(token_ids):
            raise InputError(f"Position {position}", f"0 to {len(token_ids) - 1}, those of the prompt", "another position")
        self.model, self.position = model, position
        self._ids = torch.tensor([list(token_ids)], device=model.device)
        with model.lock.hold("reading the end of a prompt"), _plain(model):
            self._start, self._kept = self._keep_before(position)
            self._stream = self._graph()
            if self._start and not self._agrees(output):
                self._start, self._kept = 0, None
                self._stream = self._graph()
        self.states: Float[Tensor, "layer d"] = torch.stack([one.detach()[0, self._place] for one in self._stream])
        self.output: Float[Tensor, " d"] = self._end.detach()

    @property
    def _place(self) -> int:
        """Of the token, among those that are run."""
        return self.position - self._start

    @property
    def _end(self) -> Tensor:
        return self._stream[-1][0, -1]

    # -- products with the Jacobian -----------------------------------------------------------------

    def pull_back(
        self,
        directions: Float[Tensor, "direction d"],
        layers: Sequence[int] | None = None,
        check: Callable[[], None] | None = None,
    ) -> Float[Tensor, "layer direction d"]:
        """Row vectors times the Jacobian of `output` by the token's state, at several layers at once.

        Args:
            directions: in the output's space; the identity matrix gives the Jacobians themselves.
            layers: which, by default all; the walk ends at the lowest.
            check: called before every 64 directions; raising from it stops.

        Raises:
            InputError: no such layer.

        Returns:
            `directions @ J[layer]`, in the model's dtype. At the last layer the output *is* the state of the last token: the
            identity where the prompt ends with the token, zero elsewhere.
        """
        shown = range(self.model.n_layers + 1) if layers is None else layers
        for layer in shown:
            self._require_layer(layer)
        wanted, found = [self._stream[layer] for layer in shown], []
        with self.model.lock.hold("taking gradients of the end of a prompt"), _plain(self.model), torch.enable_grad():
            for some in directions.to(self._end).split(_AT_ONCE):
                if check is not None:
                    check()
                rows = torch.autograd.grad(self._end, wanted, some, retain_graph=True, is_grads_batched=True)
                found.append(torch.stack([row[:, 0, self._place] for row in rows]))
        return torch.cat(found, dim=1)

    def push_forward(
        self, layer: int, directions: Float[Tensor, "direction d"], check: Callable[[], None] | None = None
    ) -> Float[Tensor, "direction d"]:
        """Directions of the token's state at one layer, carried to the output: `directions @ J[layer].T`.

        The gradient `vᵀJ` is linear in v, and its own gradient by v is what a forward-mode derivative would give.

        Raises:
            InputError: no such layer.
        """
        self._require_layer(layer)
        found = []
        with self.model.lock.hold("taking gradients of the end of a prompt"), _plain(self.model), torch.enable_grad():
            weights = torch.zeros_like(self._end).requires_grad_()
            (row,) = torch.autograd.grad(self._end, self._stream[layer], weights, create_graph=True)
            for some in directions.to(self._end).split(_AT_ONCE):
                if check is not None:
                    check()
                at = row[0, self._place]
                (moved,) = torch.autograd.grad(at, weights, some, retain_graph=True, is_grads_batched=True)
                found.append(moved)
        return torch.cat(found).detach()

    # -- values ---------------------------------------------------------------------------------------

    def outputs(
        self, layer: int, states: Float[Tensor, "change d"], check: Callable[[], None] | None = None
    ) -> Float[Tensor, "change d"]:
        """The output where the token's state at a layer is another one, for each of several.

        Raises:
            InputError: no such layer.
        """
        self._require_layer(layer)
        found = []
        with self.model.lock.hold("running the end of a prompt with changed states"), _plain(self.model):
            for some in states.to(self._end).split(_COPIES):
                if check is not None:
                    check()
                found.append(self._changed(layer, some))
        return torch.cat(found)

    def _changed(self, layer: int, states: Tensor) -> Tensor:
        ends = []

        def change(number: int, stream: Tensor) -> Tensor:
            if number == layer:
                stream = stream.clone()
                stream[:, self._place] = states
            if number == self.model.n_layers:
                ends.append(stream[:, -1])
            return stream

        with torch.no_grad():
            self._run(change, len(states))
        return ends[0]

    def _require_layer(self, layer: int) -> None:
        if not 0 <= layer <= self.model.n_layers:
            raise InputError(f"Layer {layer}", f"0 to {self.model.n_layers}, those of {self.model.name}", "another layer")

    # -- the run itself -------------------------------------------------------------------------------

    def _keep_before(self, position: int) -> tuple[int, Any]:
        """From where on tokens are run, and keys and values of those before."""
        if position == 0:
            return 0, None
        try:
            with torch.no_grad():
                kept = self.model.module.base_model(input_ids=self._ids[:, :position], use_cache=True).past_key_values
        except UnsupportedModelError:  # a replaced block keeps none
            return 0, None
        return (0, None) if kept is None else (position, kept)

    def _agrees(self, output: Tensor | None) -> bool:
        """Whether going on from what is kept gives what a run of the whole prompt gives."""
        whole = self.model.run(self._ids[0].tolist(), logits=False).residual[-1, -1] if output is None else output
        return float((whole - self._end.detach()).norm()) <= _TOLERANCE * float(whole.norm())

    def _graph(self) -> list[Tensor]:
        stream: list[Tensor] = []

        def keep(number: int, state: Tensor) -> Tensor:
            stream.append(state.detach().requires_grad_() if number == 0 else state)
            return stream[-1].clone()  # a later change in place does not reach the kept one

        with torch.enable_grad():
            self._run(keep, 1)
        return stream

    def _run(self, visit: Callable[[int, Tensor], Tensor], copies: int) -> None:
        """Run the tokens from `_start` on, with each layer's states as `visit` gives them back."""
        kept = copy.deepcopy(self._kept)
        if kept is not None and copies > 1:
            kept.batch_repeat_interleave(copies)
        blocks = [block.module for block in self.model.anatomy.blocks]
        handles = [blocks[0].register_forward_pre_hook(partial(_enter, visit), with_kwargs=True)]
        handles += [block.register_forward_hook(partial(_leave, visit, number)) for number, block in enumerate(blocks, start=1)]
        ids = self._ids[:, self._start :].expand(copies, -1)
        kept = {} if kept is None else {"past_key_values": kept}
        with hooks_on(handles):
            self.model.module.base_model(input_ids=ids, use_cache=bool(kept), **kept)


def _enter(
    visit: Callable[[int, Tensor], Tensor], _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (visit(0, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": visit(0, kwargs["hidden_states"])}


def _leave(visit: Callable[[int, Tensor], Tensor], layer: int, _module: nn.Module, _args: Any, output: Any) -> Any:
    if isinstance(output, (tuple, list)):
        return type(output)([visit(layer, output[0]), *output[1:]])
    return visit(layer, output)


@contextmanager
def _plain(model: Model) -> Iterator[None]:
    """Evaluation mode, with the attention kernel whose gradients have gradients and can be taken in batches."""
    with evaluation_mode(model.module), sdpa_kernel(SDPBackend.MATH):
        yield
