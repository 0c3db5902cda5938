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

from lens.base.errors import UnsupportedModelError
from lens.models.readout import Readout

TILE = 1024
GROUP = 64  # columns of a tile whose largest logit is remembered
BUFFER_BYTES = 128 * 2**20


@dataclass(frozen=True)
class VocabularyStatistics:
    """What a set of read-out states says about the next token. All logarithms are natural.

    Attributes:
        token_id: `[layer, position, rank]` int64, most probable first.
        logprob: `[layer, position, rank]`, of those tokens.
        entropy: `[layer, position]`, nats.
        kl_to_final: `[layer, position]`, KL(final‖layer), nats.
        answer_logprob: `[layer, position]`, of the token that the model itself puts first.
        target_logprob: `[layer, position]`, of the tokens asked for.
        target_rank: `[layer, position]` int64, of the same; 1 is the most probable, ties share the best rank.
    """

    token_id: Int64[Tensor, "layer position rank"]
    logprob: Float[Tensor, "layer position rank"]
    entropy: Float[Tensor, "layer position"]
    kl_to_final: Float[Tensor, "layer position"]
    answer_logprob: Float[Tensor, "layer position"]
    target_logprob: Float[Tensor, "layer position"]
    target_rank: Int64[Tensor, "layer position"]


def vocabulary_statistics(
    readout: Readout,
    states: Float[Tensor, "layer position d"],
    targets: Int64[Tensor, " position"],
    top_k: int,
    final_logits: Float[Tensor, "position vocab"] | None = None,
) -> VocabularyStatistics:
    """Read states through the final norm and head, exactly over the full vocabulary.

    Args:
        readout: the model's read-out.
        states: residual states, the last layer's last.
        targets: the token id whose probability and rank are wanted, per position.
        top_k: how many of the most probable tokens to keep, at most the tile of 1,024; of equal logits
            any may come first.
        final_logits: what the model itself says, if it is at hand; otherwise the last layer is read once more.

    Memory: one buffer in the head's dtype of at most 128 MiB, or one position's logits where these are
    larger, besides the results. Cost: the product `layers · positions · d · vocab`, and some tens of percent.

    Raises:
        UnsupportedModelError: states whose logits are not finite.
    """
    layers, positions, _ = states.shape
    dtype = readout.head.weight.dtype
    per_position = layers * readout.vocab_size * dtype.itemsize
    chunks = math.ceil(positions / max(1, BUFFER_BYTES // per_position))
    step = math.ceil(positions / chunks)
    tiles = math.ceil(readout.vocab_size / TILE)
    buffer = torch.empty((tiles, step * layers, TILE), dtype=dtype, device=readout.head.weight.device)
    # A vocabulary that does not fill its last tile leaves −inf there, which no statistic sees.
    buffer[-1].fill_(-torch.inf)
    parts = [
        _Chunk(
            readout,
            states[:, a : a + step],
            readout(states[-1, a : a + step]) if final_logits is None else final_logits[a : a + step],
            targets[a : a + step],
            top_k,
            buffer,
        ).statistics()
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
        asked = torch.stack([targets.to(final_logits.device), final_logits.argmax(-1)], dim=-1)
        self.targets = asked.repeat_interleave(self.layers, dim=0)
        self.tiles = buffer[:, : self.rows]
        self.scratch = torch.empty((self.rows, TILE), device=buffer.device)
        self.plain = readout.head.bias is None and readout.transform.kind == "none"

    def statistics(self) -> VocabularyStatistics:
        log_total, mean, cross, peaks = self._accumulate()
        self._require_finite(log_total)
        top_logit, top_id = self._top(peaks)
        target_logit = self._gather(self.targets)
        cross_entropy = (log_total - cross).view(self.positions, self.layers)
        # The last layer's cross entropy is the final distribution's entropy, by the very same sums.
        divergence = cross_entropy - cross_entropy[:, -1:]
        logprob = target_logit - log_total[:, None]
        return VocabularyStatistics(
            token_id=self._unfold(top_id),
            logprob=self._unfold(top_logit - log_total[:, None]),
            # Both are at least 0; rounding in a sum over the vocabulary can take them just below.
            entropy=self._unfold((log_total - mean).clamp(min=0)),
            kl_to_final=divergence.clamp(min=0).transpose(0, 1),
            answer_logprob=self._unfold(logprob[:, 1]),
            target_logprob=self._unfold(logprob[:, 0]),
            target_rank=self._unfold(1 + self._count_above(target_logit[:, :1])),
        )

    def _require_finite(self, log_total: Tensor) -> None:
        if not torch.isfinite(log_total).all():
            layer = int((~torch.isfinite(log_total)).view(self.positions, self.layers).any(0).nonzero()[0])
            raise UnsupportedModelError(
                f"Layer {layer} gives logits that are not finite", "finite activations", "dtype='float32' or 'bfloat16'"
            )

    def _accumulate(self) -> tuple[Tensor, ...]:
        """One pass over the vocabulary. Every tile leaves what it says about itself; joining them comes last.

        Returns:
            The logarithm of the sum of exponentials, the mean logit under the row's own distribution and
            under the final one, each `[row]`, and the peak of every group of columns, `[row, group]`.
        """
        log_sums, means, crosses = torch.empty((3, len(self.tiles), self.rows), device=self.hidden.device)
        peaks = torch.empty((len(self.tiles), self.rows, TILE // GROUP), device=self.hidden.device)
        for index, tile in enumerate(self.tiles):
            start, stop = index * TILE, min((index + 1) * TILE, self.readout.vocab_size)
            self._product(start, stop, out=tile[:, : stop - start])
            values = tile.float()
            torch.amax(values.view(self.rows, -1, GROUP), dim=-1, out=peaks[index])
            logits, scratch = values[:, : stop - start], self.scratch[:, : stop - start]
            weights = torch.softmax(logits, dim=-1, out=scratch)
            # The largest weight is exp(peak) over the tile's sum.
            torch.sub(peaks[index].amax(-1), weights.amax(-1).log_(), out=log_sums[index])
            torch.sum(weights.mul_(logits), dim=-1, out=means[index])
            # A matrix-vector product would be as fast, but adds 1,024 terms one after the other and loses two digits.
            shaped = (self.positions, self.layers, stop - start)
            product = torch.mul(logits.view(shaped), self.final[:, None, start:stop], out=scratch.view(shaped))
            torch.sum(product.flatten(0, 1), dim=-1, out=crosses[index])
        mean = (torch.softmax(log_sums, dim=0) * means).sum(0)
        return torch.logsumexp(log_sums, dim=0), mean, crosses.sum(0), peaks.transpose(0, 1).flatten(1)

    def _product(self, start: int, stop: int, out: Tensor) -> None:
        """Logits of one stretch of the vocabulary, written into the buffer."""
        if self.plain:
            torch.mm(self.hidden, self.readout.head.weight[start:stop].T, out=out)
        else:
            out.copy_(self.readout.columns(self.hidden, start, stop))

    def _top(self, peaks: Tensor) -> tuple[Tensor, Tensor]:
        """The k largest logits lie in the k groups with the highest peaks."""
        k = min(self.top_k, self.readout.vocab_size)
        groups = peaks.topk(min(k, peaks.shape[1]), dim=-1).indices
        in_tile = TILE // GROUP
        split = self.tiles.unflatten(-1, (in_tile, GROUP))
        rows = torch.arange(self.rows, device=groups.device)[:, None]
        values, places = split[groups // in_tile, rows, groups % in_tile].flatten(1).topk(k, dim=-1)
        return values.float(), groups.gather(1, places // GROUP) * GROUP + places % GROUP

    def _gather(self, token_ids: Tensor) -> Tensor:
        rows = torch.arange(self.rows, device=token_ids.device)[:, None]
        return self.tiles[token_ids // TILE, rows, token_ids % TILE].float()

    def _count_above(self, threshold: Tensor) -> Tensor:
        count = torch.zeros(self.rows, device=threshold.device)
        for tile in self.tiles:
            # Ones and zeros as floats: comparing into booleans takes four times as long, and float32 counts to 2²⁴.
            count += torch.gt(tile.float(), threshold, out=self.scratch).sum(-1)
        return count.long()

    def _unfold(self, values: Tensor) -> Tensor:
        return values.view(self.positions, self.layers, *values.shape[1:]).transpose(0, 1)
