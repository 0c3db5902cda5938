"""What a pass takes in memory and on disk, asked for before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lens.base.files import require_space
from lens.models.run import GIB, require_memory

_GUESS = 16 * GIB


@dataclass(frozen=True)
class Room:
    """Bytes of one pass.

    Attributes:
        sums: `[d, d]` sums in float64, of one part of the corpus.
        states: what the model's blocks leave behind for the tokens that are held at once.
    """

    sums: int
    states: int

    def require_memory(self, device: torch.device) -> None:
        """Refuse what cannot fit: sums in float64 and float32 beside two finished parts, and the states.

        Raises:
            MemoryEstimateError: with both figures.
        """
        gathering, finished = self.sums * 3 // 2 + self.states, 2 * self.sums
        hint = "fewer pairs or parts"
        if device.type == "cuda":
            require_memory("The moments", gathering, hint, limit=torch.cuda.mem_get_info(device)[0])
            gathering = 0
        require_memory("The moments", gathering + finished, hint, limit=_main_memory())

    def require_disk(self, folder: Path, parts: int, processes: int) -> None:
        """Refuse what the disk cannot hold: so many finished parts, and for the last of them an old state and a new one.

        Raises:
            DiskSpaceError: with both figures.
        """
        require_space(folder, (parts - 1 + 2 * processes) * self.sums, "moments")


def _main_memory() -> int:
    """Bytes that can be had without swapping; a guess where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return _GUESS
