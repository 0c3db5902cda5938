"""Statistics of next-token distributions over the full vocabulary, without keeping the distributions.

Logits of a few positions at a time are made tile by tile; each tile is folded into running sums while
it is in the processor's cache. Ranks are counted afterwards over the very same numbers: comparing
logits of two differently shaped products would let rounding move a rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lens.models.readout import Readout

TILE = 1024
BUFFER_BYTES = 128 * 2**20


@dataclass(frozen=True)
class VocabularyStatistics:
    """What a set of read-out states says about the next token. All logarithms are natural.

    Attributes:
        token_id: `[layer, position, rank]` int64, most probable first.
        logprob: `[layer, position, rank]`, of those tokens.
        entropy: `[layer, position]`, nats.
        kl_to_final: `[layer, position]`, KL(final‖layer), nats.
        target_logprob: `[layer, position, target]`, of the tokens asked for.
        target_rank: `[layer, position]` int64, of the first target; 1 is the most probable.
    """

    token_id: Int64[Tensor, "layer position rank"]
    logprob: Float[Tensor, "layer position rank"]
    entropy: Float[Tensor, "layer position"]
    kl_to_final: Float[Tensor, "layer position"]
    target_logprob: Float[Tensor, "layer position target"]
    target_rank: Int64[Tensor, "layer position"]


def vocabulary_statistics(
    readout: Readout,
    states: Float[Tensor, "layer position d"],
    final_logits: Float[Tensor, "position vocab"],
    targets: Int64[Tensor, "position target"],
    top_k: int,
) -> VocabularyStatistics:
    """Read states through the final norm and head, exactly over the full vocabulary.

    Args:
        readout: the model's read-out.
        states: residual states, the last layer's last.
        final_logits: what the model itself says, for the divergence.
        targets: token ids whose probability is wanted, per position; counting the rank takes a pass
            over the logits, so only the first target's is counted.
        top_k: how many of the most probable tokens to keep, at most the tile of 1,024.

    Memory: one float32 buffer of at most 128 MiB, or one position's logits where these are larger,
    besides the results. Cost: the product `layers · positions · d · vocab`, and some tens of percent.
    """
    layers, positions, _ = states.shape
    per_position = layers * readout.vocab_size * 4
    chunks = math.ceil(positions / max(1, BUFFER_BYTES // per_position))
    step = math.ceil(positions / chunks)
    tiles = math.ceil(readout.vocab_size / TILE)
    # A vocabulary that does not fill its last tile leaves −inf there, which no statistic sees.
    buffer = torch.full((tiles, step * layers, TILE), -torch.inf, device=states.device)
    parts = [
        _Chunk(readout, states[:, a : a + step], final_logits[a : a + step], targets[a : a + step], top_k, buffer).statistics()
        for a in range(0, positions, step)
    ]
    joined = (torch.cat([getattr(part, name) for part in parts], dim=1) for name in VocabularyStatistics.__dataclass_fields__)
    return VocabularyStatistics(*joined)


class _Chunk:
    """A few positions, all layers. Rows run over positions first, so that one position's layers lie together."""

    def __init__(self, readout: Readout, states: Tensor, final_logits: Tensor, targets: Tensor, top_k: int, buffer: Tensor):
        self.layers, self.positions = states.shape[:2]
        self.rows = self.layers * self.positions
        self.readout, self.top_k = readout, top_k
        self.hidden = readout.normalise(states.transpose(0, 1).reshape(self.rows, -1))
        self.final = torch.softmax(final_logits.float(), dim=-1)
        self.targets = targets.to(states.device).repeat_interleave(self.layers, dim=0)
        self.tiles = buffer[:, : self.rows]

    def statistics(self) -> VocabularyStatistics:
        largest, total, weighted, cross, peaks = self._accumulate()
        log_total = largest + total.log()
        top_logit, top_id = self._top(peaks)
        target_logit = self._gather(self.targets)
        entropy = log_total - weighted / total
        cross_entropy = (log_total - cross).view(self.positions, self.layers)
        # The same sums at the last layer, so that the divergence of the model from itself is exactly 0.
        divergence = cross_entropy - cross_entropy[:, -1:]
        return VocabularyStatistics(
            token_id=self._unfold(top_id),
            logprob=self._unfold(top_logit - log_total[:, None]),
            # Both are at least 0; rounding in a sum over the vocabulary can take them just below.
            entropy=self._unfold(entropy.clamp(min=0)),
            kl_to_final=divergence.clamp(min=0).transpose(0, 1),
            target_logprob=self._unfold(target_logit - log_total[:, None]),
            target_rank=self._unfold(1 + self._count_above(target_logit[:, :1])),
        )

    def _accumulate(self) -> tuple[Tensor, ...]:
        """One pass over the vocabulary: online softmax sums, the cross term, and each column's peak over tiles."""
        device = self.hidden.device
        largest = torch.full((self.rows,), -torch.inf, device=device)
        total, weighted = torch.zeros(self.rows, device=device), torch.zeros(self.rows, device=device)
        cross = torch.zeros((self.positions, self.layers), device=device)
        peaks = torch.full((self.rows, TILE), -torch.inf, device=device)
        scratch = torch.empty((self.rows, TILE), device=device)
        for start, logits in self._products():
            width = logits.shape[1]
            torch.maximum(peaks[:, :width], logits, out=peaks[:, :width])
            former, largest = largest, torch.maximum(largest, logits.amax(-1))
            shrink = (former - largest).exp_()
            weights = torch.sub(logits, largest[:, None], out=scratch[:, :width]).exp_()
            total.mul_(shrink).add_(weights.sum(-1))
            weighted.mul_(shrink).add_(weights.mul_(logits).sum(-1))
            # A matrix-vector product would be as fast, but adds 1,024 terms one after the other and loses two digits.
            shaped = (self.positions, self.layers, width)
            product = torch.mul(
                logits.view(shaped), self.final[:, None, start : start + width], out=scratch[:, :width].view(shaped)
            )
            cross.add_(product.sum(-1))
        return largest, total, weighted, cross.flatten(), peaks

    def _products(self):
        for index, tile in enumerate(self.tiles):
            start = index * TILE
            stop = min(start + TILE, self.readout.vocab_size)
            logits = tile[:, : stop - start]
            logits.copy_(self.readout.columns(self.hidden, start, stop))
            yield start, logits

    def _top(self, peaks: Tensor) -> tuple[Tensor, Tensor]:
        """The k largest logits lie in the k columns of tiles with the highest peaks."""
        k = min(self.top_k, self.readout.vocab_size)
        columns = peaks.topk(k, dim=-1).indices
        candidates = self.tiles.gather(2, columns.expand(len(self.tiles), -1, -1)).transpose(0, 1)
        values, places = candidates.flatten(1).topk(k, dim=-1)
        return values, (places // k) * TILE + columns.gather(1, places % k)

    def _gather(self, token_ids: Tensor) -> Tensor:
        rows = torch.arange(self.rows, device=token_ids.device)[:, None]
        return self.tiles[token_ids // TILE, rows, token_ids % TILE]

    def _count_above(self, threshold: Tensor) -> Tensor:
        count = torch.zeros(len(threshold), dtype=torch.int64, device=threshold.device)
        for tile in self.tiles:
            count += torch.count_nonzero(tile > threshold, dim=-1)
        return count

    def _unfold(self, values: Tensor) -> Tensor:
        return values.view(self.positions, self.layers, *values.shape[1:]).transpose(0, 1)
