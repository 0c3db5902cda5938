"""Where the parts of a causal language model sit in its module tree.

This is the only module that knows. Parts are found by structure, not by family name: one short
forward pass is traced, and the order of calls tells which list of modules is the stack of blocks,
and what stands between the last block and the head. `lens.models.readout` then proves the finding
against the model's own logits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from lens.base.errors import AnatomyError

PARTS = ("blocks", "tail", "head")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MLP = re.compile(r"mlp|feed_forward|ffn|moe|experts", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """One transformer block and the parts inside it that could be told apart.

    Attributes:
        path: dotted path of the block.
        module: the block itself.
        attention: the module that mixes positions, or None where the block has none of its own.
        mlp: first and last module of the feed-forward part (the same module twice where it is one
            module; two linear layers in OPT), or None.
        norms: the norms that are direct children, in order of definition.
    """

    path: str
    module: nn.Module
    attention: nn.Module | None
    mlp: tuple[nn.Module, nn.Module] | None
    norms: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model.

    Attributes:
        embedding: token embedding.
        blocks: the stack, first to last.
        tail: what is called between the last block and the head, in order: the final norm, and a
            projection where the head is narrower than the stream.
        head: the linear map to the vocabulary.
        rotary: every module that holds rotary inverse frequencies.
        paths: dotted paths of `blocks`, `tail` and `head`, as an override would give them.
    """

    embedding: nn.Embedding
    blocks: tuple[Block, ...]
    tail: tuple[nn.Module, ...]
    head: nn.Linear
    rotary: tuple[nn.Module, ...]
    paths: Mapping[str, str | list[str]]


@dataclass(frozen=True)
class _Call:
    """A module that was entered (`opened`) or left, in order of time."""

    path: str
    opened: bool


def find_anatomy(module: nn.Module, token_ids: torch.Tensor, override: Mapping[str, Any] | None = None) -> Anatomy:
    """Find the parts by tracing one forward pass.

    Args:
        module: a transformers causal language model.
        token_ids: `[batch, position]` int64, a few valid ids to trace with.
        override: dotted paths that replace the search: `{"blocks": "model.layers", "tail":
            ["model.norm"], "head": "lm_head"}`, any of the three.

    Raises:
        AnatomyError: a part was not found, or an override leads nowhere; says what was looked for.
    """
    override = dict(override or {})
    unknown = set(override) - set(PARTS)
    if unknown:
        raise AnatomyError(f"The override names {sorted(unknown)}", f"some of {list(PARTS)}", "removing the others")
    if not all(isinstance(override.get(part, "x"), str) and override.get(part, "x") for part in ("blocks", "head")):
        raise AnatomyError(f"The override is {override}", "dotted paths for blocks and head", '{"blocks": "model.layers"}')
    if not isinstance(override.get("tail", []), (list, tuple)):
        raise AnatomyError(f"The tail is {override['tail']!r}", "a list of dotted paths", '{"tail": ["model.norm"]}')
    calls = _trace(module, token_ids)
    head_path, head = _find_head(module, override.get("head"))
    list_path = override.get("blocks") or _find_blocks(module, calls)
    stack = list(_submodule(module, list_path).named_children())
    if not stack:
        raise AnatomyError(f"{list_path} has no children", "the list that holds the transformer blocks", "another path")
    block_paths = [f"{list_path}.{name}" for name, _ in stack]
    if [call.path for call in calls if call.opened and call.path in set(block_paths)] != block_paths:
        raise AnatomyError(
            f"The children of {list_path} do not run one after the other, each once", "the list of blocks", "another path"
        )
    tail_paths = override.get("tail")
    if tail_paths is None:
        tail_paths = _called_between(calls, block_paths[-1], head_path)
    return Anatomy(
        embedding=module.get_input_embeddings(),  # type: ignore[operator]
        blocks=tuple(_dissect(path, block) for path, (_, block) in zip(block_paths, stack, strict=True)),
        tail=tuple(_submodule(module, path) for path in tail_paths),
        head=head,
        rotary=tuple(m for m in module.modules() if any("inv_freq" in name for name, _ in m.named_buffers(recurse=False))),
        paths={"blocks": list_path, "tail": list(tail_paths), "head": head_path},
    )


def _trace(module: nn.Module, token_ids: torch.Tensor) -> list[_Call]:
    calls: list[_Call] = []

    def record(path: str, opened: bool, *_: Any) -> None:
        calls.append(_Call(path, opened))

    with ExitStack() as stack, torch.no_grad():
        for path, part in module.named_modules():
            stack.callback(part.register_forward_pre_hook(partial(record, path, True)).remove)
            stack.callback(part.register_forward_hook(partial(record, path, False)).remove)
        module(input_ids=token_ids, use_cache=False)
    return calls


def _find_head(module: nn.Module, path: str | None) -> tuple[str, nn.Linear]:
    head = _submodule(module, path) if path else getattr(module, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Linear):
        raise AnatomyError(
            f"{type(module).__name__} has the output head {type(head).__name__}",
            "a linear map to the vocabulary, as get_output_embeddings() gives it for a causal language model",
            'a causal language model, or anatomy={"head": "path.to.head"}',
        )
    return next(name for name, part in module.named_modules() if part is head), head


def _find_blocks(module: nn.Module, calls: Sequence[_Call]) -> str:
    """Path of the longest outermost list whose members ran one after the other, each once."""
    opened = [call.path for call in calls if call.opened]
    candidates = []
    for path, part in module.named_modules():
        if not isinstance(part, (nn.ModuleList, nn.Sequential)) or len(part) == 0:
            continue
        members = [f"{path}.{name}" for name, _ in part.named_children()]
        ran = [p for p in opened if p in set(members)]
        nested = any(path.startswith(other + ".") for other, _ in candidates)
        if ran == members and not nested:
            candidates.append((path, len(part)))
    wanted = _layer_count(module)
    matching = [path for path, length in candidates if wanted in (None, length)]
    if len(matching) != 1:
        seen = ", ".join(f"{path} ({length})" for path, length in candidates) or "none"
        raise AnatomyError(
            f"{type(module).__name__} has these lists of modules that run in order: {seen}",
            f"exactly one stack of {wanted or 'transformer'} blocks",
            'naming it: lens.load(..., anatomy={"blocks": "path.to.list"})',
        )
    return matching[0]


def _layer_count(module: nn.Module) -> int | None:
    config = getattr(module, "config", None)
    if config is None:
        return None
    return getattr(config.get_text_config(), "num_hidden_layers", None)


def _called_between(calls: Sequence[_Call], last_block: str, head: str) -> list[str]:
    """Outermost modules entered and left between the end of the last block and the head."""
    start = max(i for i, call in enumerate(calls) if call.path == last_block and not call.opened)
    stop = next((i for i, call in enumerate(calls) if call.path == head and call.opened and i > start), None)
    if stop is None:
        raise AnatomyError(
            "The head is not called after the last block",
            "a model whose logits come from its head",
            'anatomy={"head": "path.to.head"}',
        )
    between = calls[start + 1 : stop]
    left = {call.path for call in between if not call.opened}  # what is still open encloses the head
    found: list[str] = []
    for call in between:
        inside = any(call.path == path or call.path.startswith(path + ".") for path in found)
        if call.opened and call.path in left and not inside:
            found.append(call.path)
    return found


def _dissect(path: str, block: nn.Module) -> Block:
    children = [(name, part) for name, part in block.named_children() if not isinstance(part, nn.Dropout)]
    norms = tuple(part for name, part in children if _is_norm(name, part))
    attention = [part for name, part in children if _ATTENTION.search(name) and not _is_norm(name, part)]
    mlp = [part for name, part in children if _MLP.search(name) and not _is_norm(name, part)]
    linear = [part for _, part in children if isinstance(part, nn.Linear)]
    ends = (mlp[0], mlp[0]) if len(mlp) == 1 else (linear[0], linear[1]) if not mlp and len(linear) == 2 else None
    return Block(path, block, attention[0] if len(attention) == 1 else None, ends, norms)


def _is_norm(name: str, part: nn.Module) -> bool:
    return "norm" in type(part).__name__.lower() or bool(re.search(r"norm|(^|_)ln(_|$)", name, re.IGNORECASE))


def _submodule(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        children = ", ".join(name for name, _ in module.named_children())
        raise AnatomyError(
            f"{type(module).__name__} has no part {path!r}", f"a dotted path from its children ({children})", "print(module)"
        ) from None


@contextmanager
def hooks_on(handles: Sequence[Any]) -> Iterator[None]:
    """Remove hook handles on the way out, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
