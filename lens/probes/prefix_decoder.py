"""A small decoder that reads, from one token's frozen state, which tokens stood before it.

Source: Razzhigaev et al., "LLM-Microscope" (arXiv 2502.15007), section 3, where a trainable copy of the whole model
regenerates the prefix from one state, a learnt mixture over layers. That costs a training of the model itself. This decoder is
smaller and says less: it reads every layer by itself, so that depths can be compared; it names the token at each of a few
distances independently, among the most frequent tokens of its training text and one class for all others; and it knows nothing
of language beyond how often these are. What it does not find may still be there.

    python -m lens.probes.prefix_decoder prefix-decoder-smollm2-135m.safetensors

trains the one that is shipped.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lens.base.errors import InputError
from lens.base.files import atomic_file
from lens.base.progress import Progress
from lens.collect import draw_windows, in_batches
from lens.corpora import Corpus, Part, corpus
from lens.models.load import load
from lens.models.model import Model, evaluation_mode
from lens.models.run import residual_states
from lens.probes.tuned_lens import weights_hash
from lens.training import Recipe, Record, read_record, train
from lens.training.loop import digest_of

RECIPE = Recipe(
    "prefix-decoder", steps=200, optimiser="adamw", learning_rate=3e-3, weight_decay=0.05, warm_up=20, schedule="cosine", clip=1.0
)
LAGS = (1, 2, 3, 4, 6, 8, 12, 16)
_MISSING = -100  # no token stands there; ignored by the loss
_FORMAT = 1
_ROWS = 256  # tokens whose logits are held at once


class PrefixDecoder(nn.Module):
    """`logits[lag] = GELU(x · into + bias) · out_of[lag] · (E · projection)ᵀ + bias[lag]` with x a state over its root mean
    square.

    Args:
        known: ids of the tokens that it can name, `[class − 1]`; the last class stands for all others.
        embedding: of these, from the model, `[class − 1, d]`; frozen.
        layers: which residual states it reads.
        lags: distances to the tokens that it names.
        hidden, width: of its two inner spaces.
        seed: of its initial weights.
    """

    known: Tensor
    log_frequency: Tensor
    embedding: Tensor

    def __init__(
        self,
        known: Int64[Tensor, " known"],
        embedding: Float[Tensor, "known d"],
        layers: Sequence[int],
        lags: Sequence[int] = LAGS,
        *,
        hidden: int = 160,
        width: int = 96,
        seed: int = 0,
    ):
        super().__init__()
        self.layers, self.lags = tuple(layers), tuple(lags)
        self.source: dict[str, Any] = {}
        self.record: Record | None = None
        d, classes = embedding.shape[1], len(known) + 1
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int, share: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * share**-0.5)

        self.into, self.projection = drawn(len(layers), d, hidden, share=d), drawn(d, width, share=d * width)
        self.out_of = nn.Parameter(torch.zeros(len(lags), hidden, width))  # at first it says how frequent tokens are
        self.into_bias, self.other = nn.Parameter(torch.zeros(len(layers), hidden)), nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(len(lags), classes))
        self.register_buffer("known", known)
        self.register_buffer("log_frequency", torch.full((classes,), -torch.tensor(float(classes)).log().item()))
        # The model's own, so that it is neither trained nor stored.
        self.register_buffer("embedding", embedding.detach().float() / embedding.float().square().mean().sqrt(), persistent=False)

    @property
    def classes(self) -> int:
        """Tokens that it can name, and one class for all others."""
        return len(self.log_frequency)

    def start_from(self, ids: Sequence[int]) -> None:
        """Take frequencies from token ids: as what it is compared with, and as what it says before it has learnt anything."""
        counts = torch.bincount(self.classes_of(torch.tensor(ids)), minlength=self.classes).float() + 0.5
        with torch.no_grad():
            self.log_frequency.copy_((counts / counts.sum()).log())
            self.bias.copy_(self.log_frequency.expand_as(self.bias))

    def classes_of(self, ids: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
        """Class of each token id."""
        place = torch.searchsorted(self.known, ids.contiguous()).clamp(max=len(self.known) - 1)
        return torch.where(self.known[place] == ids, place, len(self.known))

    def targets(self, ids: Int64[Tensor, "*any position"]) -> Int64[Tensor, "*any position lag"]:
        """Class of the token at each lag before every position; −100 where there is none."""
        found = self.classes_of(ids)
        shifted = []
        for lag in self.lags:
            before = torch.full_like(found, _MISSING)
            before[..., lag:] = found[..., : max(found.shape[-1] - lag, 0)]
            shifted.append(before)
        return torch.stack(shifted, -1)

    def losses(
        self, states: Float[Tensor, "layer token d"], targets: Int64[Tensor, "token lag"]
    ) -> Float[Tensor, "layer token lag"]:
        """−ln p of the true token at each lag, nats; 0 where there is none.

        Args:
            states: of `layers`, in any scale.
            targets: from `targets`.
        """
        inner = nn.functional.gelu(normalised(states) @ self.into + self.into_bias[:, None])
        names = torch.cat([self.embedding @ self.projection, self.other[None]])
        found = []
        for place in range(len(self.lags)):
            logits = inner @ self.out_of[place] @ names.T + self.bias[place]
            wanted = targets[:, place].expand(len(states), -1)
            found.append(nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape))
        return torch.stack(found, -1)

    def require_model(self, model: Model) -> None:
        """Refuse another model than the one whose states it was trained on.

        Raises:
            InputError: with both hashes.
        """
        found = weights_hash(model)
        if self.source.get("weights_hash") != found:
            fitted = f"{self.source.get('model')} ({str(self.source.get('weights_hash'))[:12]}…)"
            needed = f"{model.name} ({found[:12]}…)"
            raise InputError(f"This decoder was trained on {fitted}", needed, "lens.fit_prefix_decoder on this model")

    def save(self, path: Path | str) -> Path:
        """Write it as safetensors in bfloat16, provenance included, and the record beside it as JSON lines; atomically."""
        from safetensors.torch import save_file

        path = Path(path)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        tensors = {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in tensors.items()}
        facts = json.dumps({"format": _FORMAT, "layers": self.layers, "lags": self.lags, "source": self.source})
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata={"prefix_decoder": facts, "check": digest_of(tensors, facts)})
        if self.record is not None:
            self.record.write(path.with_suffix(".jsonl"))
        return path


def normalised(states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """States over their root mean square, in float32: what is read is their direction."""
    wide = states.float()
    return wide / wide.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)


def load_prefix_decoder(path: Path | str, model: Model) -> PrefixDecoder:
    """Read a decoder that `PrefixDecoder.save` wrote, and its record if it lies beside it.

    Raises:
        InputError: no such file, another or a damaged file, or a decoder of another model.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
        facts = json.loads(metadata["prefix_decoder"])
        if metadata["check"] != digest_of(tensors, metadata["prefix_decoder"]):
            raise ValueError("its content does not fit its hash")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        needed = "a file that PrefixDecoder.save wrote"
        raise InputError(f"{path} holds no prefix decoder ({error})", needed, "lens.fit_prefix_decoder") from error
    known, (hidden, width) = tensors["known"], tensors["out_of"].shape[1:]
    embedding = model.anatomy.embedding.weight
    if len(known) and int(known.max()) >= len(embedding):
        raise InputError(f"{path} names token {int(known.max())}", f"ids below {len(embedding)}", "another model")
    decoder = PrefixDecoder(
        known, embedding[known.to(embedding.device)].cpu(), facts["layers"], facts["lags"], hidden=hidden, width=width
    )
    decoder.source = facts["source"]
    decoder.require_model(model)
    decoder.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in tensors.items()})
    record = path.with_suffix(".jsonl")
    decoder.record = read_record(record) if record.exists() else None
    return decoder.requires_grad_(False)


def fit_prefix_decoder(
    model: Model,
    text: Corpus,
    *,
    layers: Sequence[int] | None = None,
    lags: Sequence[int] = LAGS,
    tokens: int = 12_000,
    names: int = 4095,
    hidden: int = 160,
    width: int = 96,
    recipe: Recipe = RECIPE,
    batch: int = 64,
    window: int = 256,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> PrefixDecoder:
    """Train a decoder on a model's frozen states; the model is run once over the text and not changed.

    Args:
        model: whose states are read.
        text: trained on its train part, judged on its validation part.
        layers: residual states; by default seven, evenly spread, the embedding among them, which knows the token and nothing of
            its prefix.
        lags: distances to the tokens that are named.
        tokens: of the train part; a quarter as many are judged.
        names: tokens that it can name, the most frequent ones.
        hidden, width: of its two inner spaces.
        recipe: of the training.
        batch: tokens of each step.
        window: tokens of context.
        progress: callback in steps; by default a bar in a terminal.
        check: called before every block and step; raising `Cancelled` stops.

    Memory: `2 · layers · tokens · d` bytes for the states, and `4 · layers · batch · names` for each lag's logits.

    Raises:
        InputError: a layer that is not there, or no text.
    """
    last = model.n_layers
    chosen = sorted({round(last * part / 6) for part in range(7)}) if layers is None else sorted(set(layers))
    if not chosen or not set(chosen) <= set(range(last + 1)) or min(lags, default=0) < 1:
        raise InputError(f"The layers {chosen} and lags {list(lags)}", f"layers 0 to {last}, lags from 1", "layers=None")
    size = min(window, model.context or window)
    windows = draw_windows(model, text, "train", 10 * tokens, size)  # frequencies are known of more text than is run
    if not windows or max(map(len, windows)) <= max(lags):
        raise InputError(f"{text.name} gives {len(windows)} windows", f"some of more than {max(lags)} tokens", "longer texts")
    everything = [one for ids in windows for one in ids]
    known = torch.tensor(sorted(one for one, _ in Counter(everything).most_common(names)))
    embedding = model.anatomy.embedding.weight.detach()[known.to(model.device)].cpu()
    decoder = PrefixDecoder(known, embedding, chosen, lags, hidden=hidden, width=width, seed=recipe.seed)
    decoder.start_from(everything)
    states, targets = prefix_states(model, decoder, text, "train", tokens, size, check)
    generator = torch.Generator().manual_seed(recipe.seed)
    times = 1 + recipe.steps * batch // len(targets)
    order = torch.cat([torch.randperm(len(targets), generator=generator) for _ in range(times)])

    def loss(step: int) -> Mapping[str, Tensor]:
        rows = order[step * batch : (step + 1) * batch]
        wanted = targets[rows]
        found = decoder.losses(states[:, rows], wanted)
        return {"prefix": found.sum() / (len(chosen) * (wanted != _MISSING).sum())}

    source = {
        "model": model.name, "weights_hash": weights_hash(model), "corpus": text.name, "corpus_hash": text.digest,
        "tokens": len(targets), "window": size, "batch": batch, "layers": chosen, "lags": list(lags), "names": len(known),
    }  # fmt: skip
    decoder.record = train(recipe, decoder, loss, source=source, tokens_per_step=batch, progress=progress, check=check)
    decoder.requires_grad_(False)
    decoder.source = {**source, **judge(model, decoder, text, tokens // 4, size, check)}
    return decoder


def judge(
    model: Model, decoder: PrefixDecoder, text: Corpus, tokens: int, window: int, check: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Mean losses on the validation part by layer and by lag, nats, beside those of frequencies and of other tokens' states."""
    states, targets = prefix_states(model, decoder, text, "validation", tokens, window, check)
    there = targets != _MISSING
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own, others = (
            torch.cat([decoder.losses(states[:, rows], targets[part]) for rows, part in _pairs(places, len(targets))], 1)
            for places in (torch.arange(len(targets)), order)
        )
    frequencies = -decoder.log_frequency[targets.clamp(min=0)] * there
    counts = there.sum()
    return {
        "validation_tokens": len(targets),
        "validation_loss": (own.sum((1, 2)) / counts).tolist(),
        "validation_loss_by_lag": (own.sum(1) / there.sum(0)).tolist(),
        "shuffled_loss": (others.sum((1, 2)) / counts).tolist(),
        "frequency_loss": float(frequencies.sum() / counts),
    }


def _pairs(places: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Whose states are read, and whose prefixes are wanted, a few tokens at a time."""
    return list(zip(places.split(_ROWS), torch.arange(count).split(_ROWS), strict=True))


def prefix_states(
    model: Model,
    decoder: PrefixDecoder,
    text: Corpus,
    part: Part,
    tokens: int,
    window: int,
    check: Callable[[], None] | None = None,
) -> tuple[Float[Tensor, "layer token d"], Int64[Tensor, "token lag"]]:
    """States of a part of a corpus, over their root mean square and in half precision, and what stands before each token.

    Position 0 of each window, before which nothing stands, is left out.
    """
    states, targets = [], []
    for ids in in_batches(draw_windows(model, text, part, tokens, window), 1024):
        with torch.no_grad(), model.lock.hold("reading states", check), evaluation_mode(model.module):
            found = residual_states(model.module, model.anatomy, ids, check)[list(decoder.layers), :, 1:]
        states.append(normalised(found.cpu()).half().flatten(1, 2))
        targets.append(decoder.targets(ids)[:, 1:].flatten(0, 1))
    if not states:
        raise InputError(f"The {part} part of {text.name} gives no windows", "documents of 16 tokens or more", "longer texts")
    return torch.cat(states, 1), torch.cat(targets)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m lens.probes.prefix_decoder OUTPUT`: train a decoder and write it with its record."""
    parser = argparse.ArgumentParser(description="Train a decoder that reads a prefix from one token's state.")
    parser.add_argument("output", type=Path, help="the decoder, .safetensors; its record lies beside it")
    parser.add_argument("--model", default="smollm2-135m", help="default %(default)s")
    parser.add_argument("--corpus", default="wikipedia", help="a built-in corpus, a file or a folder (%(default)s)")
    parser.add_argument("--tokens", type=int, default=12_000, help="default %(default)s")
    parser.add_argument("--steps", type=int, default=RECIPE.steps, help="default %(default)s")
    options = parser.parse_args(arguments)
    recipe = replace(RECIPE, steps=options.steps, warm_up=min(RECIPE.warm_up, options.steps // 4))
    fitted = fit_prefix_decoder(load(options.model), corpus(options.corpus), tokens=options.tokens, recipe=recipe)
    fitted.save(options.output)


if __name__ == "__main__":
    main()
