"""TransformerLens's logit lens on the same weights and text: the same values, and how long each takes."""

from __future__ import annotations

import importlib.metadata
import logging
from typing import Any

import torch
import xarray as xr
from transformers.utils import logging as hub_logging

import lens
from lens.models.fetch import pull
from lens.models.run import Run
from tests.benchmarks.measure import TEXT, Row, SkippedError, minima

VERSION = "4.3.0"
INSTALL = (
    f"TransformerLens {VERSION} is no dependency of ours. In an environment of its own: "
    f"`pip install -e . -c binder/constraints.txt`, then `pip install transformer-lens=={VERSION} -c binder/constraints.txt`"
)
DIFFERENCE = 1e-3  # nats; two float32 passes of 30 layers through different attention kernels


def rows(repeats: int) -> list[Row]:
    """Times with the goal to be ahead, then agreement of the values."""
    bridge, analysis = _peer()
    model = lens.load("smollm2-135m", device="cpu")
    ids = model.encode(TEXT)[:32]
    batch = torch.tensor([ids])
    run = model.run(ids)
    _, cache = bridge.run_with_cache(batch)
    options: dict[str, Any] = {"positions": None, "return_type": "log_probs"}

    def top(**source: Any) -> Any:
        return analysis.logit_lens(bridge, **source, **options, top_k=5)

    def following(**source: Any) -> Any:
        return analysis.logit_lens(bridge, **source, **options, targets=batch.roll(-1))

    cases = {
        "peer top": lambda: top(cache=cache),
        "peer both": lambda: (top(cache=cache), following(cache=cache)),
        "ours": lambda: lens.logit_lens(run),
        "peer whole": lambda: top(input=batch),
        "ours whole": lambda: lens.logit_lens(model.run(ids)),
    }
    best = minima(cases, repeats)
    times = [
        Row("logit_lens with KL and ranks / TransformerLens, top 5 and entropy", best["ours"], best["peer top"], 1, strict=True),
        Row("the same / TransformerLens, twice: for the top 5 and for ranks", best["ours"], best["peer both"], 1, strict=True),
        Row("run and logit_lens / TransformerLens from token ids", best["ours whole"], best["peer whole"], 1, strict=True),
    ]
    found = lens.logit_lens(run)
    return times + _agreement(found, top(cache=cache), following(cache=cache)) + _errors(run, found, bridge, analysis)


def _peer() -> tuple[Any, Any]:
    try:
        found = importlib.metadata.version("transformer-lens")
    except importlib.metadata.PackageNotFoundError:
        raise SkippedError(INSTALL) from None
    if found != VERSION:
        raise SkippedError(f"TransformerLens {found} is installed. {INSTALL}")
    logging.disable(logging.WARNING)
    hub_logging.disable_progress_bar()
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools import analysis

    # From the folder, not from our module: the bridge rearranges the module that it is given.
    return TransformerBridge.boot_transformers(str(pull("smollm2-135m")), device="cpu"), analysis


def _agreement(ours: xr.Dataset, top: Any, following: Any) -> list[Row]:
    """Largest differences between the two, each after a forward pass of its own."""
    peer_ids, peer_logprob = top.readout.top_ids[:, 0], top.values[:, 0]
    known = slice(0, -1)
    ranks = following.readout.target_ranks[:, 0, known, 0] + 1
    surprisal = -following.values[:, 0, known, 0]
    return [
        _count("cells with another first token", _tensor(ours.token_id)[..., 0] != peer_ids[..., 0]),
        _count("cells with another rank of the next token", _tensor(ours.next_rank)[:, known] != ranks),
        _largest("log-probabilities of the top 5", _tensor(ours.logprob) - peer_logprob),
        _largest("entropy", _tensor(ours.entropy) - top.readout.entropy[:, 0]),
        _largest("next_surprisal", _tensor(ours.next_surprisal)[:, known] - surprisal),
    ]


def _tensor(values: xr.DataArray) -> torch.Tensor:
    return torch.from_numpy(values.to_numpy())


def _count(name: str, differs: torch.Tensor) -> Row:
    return Row(f"TransformerLens, {differs.numel()} cells: {name}", int(differs.sum()), goal=0, unit="cells")


def _largest(name: str, difference: torch.Tensor) -> Row:
    return Row(f"TransformerLens, largest difference: {name}", difference.abs().max().item(), goal=DIFFERENCE, unit="nats")


def _errors(run: Run, ours: xr.Dataset, bridge: Any, analysis: Any) -> list[Row]:
    """Both read-outs of the very same states, against float64."""
    peer = analysis.logit_readout(bridge, run.residual, top_k=5, return_type="log_probs")
    exact = [_exactly(run, layer) for layer in range(len(run.residual))]
    logprob, entropy = (torch.stack(parts) for parts in zip(*exact, strict=True))
    pairs = {
        "log-probabilities": (_tensor(ours.logprob), peer.values, logprob),
        "entropy": (_tensor(ours.entropy), peer.entropy, entropy),
    }
    return [
        Row(f"error against float64: {name} / TransformerLens's", _error(a, right), _error(b, right), unit="nats")
        for name, (a, b, right) in pairs.items()
    ]


def _error(values: torch.Tensor, exact: torch.Tensor) -> float:
    return (values.double() - exact).abs().max().item()


def _exactly(run: Run, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the top 5 and entropy, from the read-out's own normalised states on in float64."""
    readout = run.model.readout
    with torch.no_grad():
        logprob = (readout.normalise(run.residual[layer]).double() @ readout.head.weight.double().T).log_softmax(-1)
    return logprob.topk(5).values, -(logprob.exp() * logprob).sum(-1)
