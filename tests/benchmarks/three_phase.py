"""A training step of three phases, beside the control without any, and a plain loop around a plain model of the same size."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import lens
from lens.models.three_phase import ThreePhaseForCausalLM
from lens.training import train
from lens.training.phase_recipes import SHAPE, phase_recipe
from lens.training.subwords import SubwordLoss, SubwordText, subword_text
from lens.training.three_phase import phase_model
from tests.benchmarks.measure import Row, minima, on_processor

STEPS = 5  # of a round
TEXT = phase_recipe("three-phase-n3").text


class PlainBlock(nn.Module):
    """Attention and MLP as nanoGPT writes them, with the grouped queries, the gated MLP and the widths of ours."""

    def __init__(self) -> None:
        super().__init__()
        width, heads, groups, inner = (
            SHAPE[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        )
        self.heads, self.groups, self.head_width = heads, groups, width // heads
        self.first, self.second = nn.RMSNorm(width, 1e-6), nn.RMSNorm(width, 1e-6)
        self.read = nn.Linear(width, (heads + 2 * groups) * self.head_width, bias=False)
        self.write = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        cut = self.read(self.first(x)).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        query, key, value = cut.split([self.heads, self.groups, self.groups], 1)
        query, key = (_turned(part, cosine, sine) for part in (query, key))
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x = x + self.write(seen.transpose(1, 2).flatten(2))
        gate, up = self.up(self.second(x)).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up)


class PlainModel(nn.Module):
    """A decoder of the same size as the control, with nothing of transformers in it."""

    def __init__(self) -> None:
        super().__init__()
        width = SHAPE["hidden_size"]
        self.embedding = nn.Embedding(TEXT.vocabulary, width)
        self.blocks = nn.ModuleList([PlainBlock() for _ in range(SHAPE["num_hidden_layers"])])
        self.norm, self.head = nn.RMSNorm(width, 1e-6), nn.Linear(width, TEXT.vocabulary, bias=False)
        half = width // SHAPE["num_attention_heads"] // 2
        angles = torch.arange(TEXT.length)[:, None] * 1e4 ** (-torch.arange(half) / half)
        self.register_buffer("cosine", angles.cos().repeat(1, 2))
        self.register_buffer("sine", angles.sin().repeat(1, 2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cosine, self.sine)
        return self.head(self.norm(x))


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cosine + torch.cat([-right, left], -1) * sine


def rows(repeats: int) -> list[Row]:
    """Processor time of a step, and tokens a second of it."""
    text = subword_text([lens.corpus(name) for name in TEXT.corpora], TEXT.vocabulary)
    ours = {name: phase_model(phase_recipe(f"three-phase-{name}"), 0) for name in ("n3", "rope-only")}
    plain = PlainModel()
    _require_equal_size(plain, ours["rope-only"])
    best: dict[str, float] = {}
    calls: dict[str, Callable[[], None]] = {name: _steps_of(module, text) for name, module in ours.items()}
    calls["plain"] = _plain_steps(plain, text)
    minima({name: on_processor(call, name, best) for name, call in calls.items()}, repeats)
    step = {name: seconds / STEPS for name, seconds in best.items()}
    tokens = TEXT.windows * TEXT.length
    for name, seconds in step.items():
        print(f"  {name}: {tokens / seconds:.0f} tokens for each second of processor time", flush=True)
    size = f"{SHAPE['num_hidden_layers']} blocks of {SHAPE['hidden_size']}, {tokens} tokens, processor time"
    return [
        Row(f"training step, {size}: 3 phases / the control without", step["n3"], step["rope-only"], 1.05),
        Row("the same: 3 phases / a plain loop around a plain model", step["n3"], step["plain"]),
        Row("the same: the control / a plain loop around a plain model", step["rope-only"], step["plain"]),
    ]


def _require_equal_size(plain: nn.Module, ours: ThreePhaseForCausalLM) -> None:
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in (plain, ours)]
    assert sizes[0] == sizes[1], sizes


def _steps_of(module: nn.Module, text: SubwordText) -> Callable[[], None]:
    """Our loop, everything that it does for a step counted."""
    recipe = phase_recipe("three-phase-n3").shortened(STEPS).training
    loss = SubwordLoss(module, text, length=TEXT.length, windows=TEXT.windows, seed=0)

    def steps() -> None:
        train(recipe, module, loss)

    return steps


def _plain_steps(module: nn.Module, text: SubwordText) -> Callable[[], None]:
    """The inner loop of nanoGPT: draw, forward, backward, clip, AdamW with a rate of its own in each step."""
    recipe = phase_recipe("three-phase-n3").training
    optimiser = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    stream, random = torch.from_numpy(text.train.astype(np.int64)), np.random.default_rng(0)

    def steps() -> None:
        for step in range(STEPS):
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * step / STEPS)) / 2
            starts = random.integers(0, len(stream) - TEXT.length, TEXT.windows)
            ids = torch.stack([stream[start : start + TEXT.length + 1] for start in starts])
            logits = module(ids[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    return steps
