"""What each process of a `torchrun` runs: the same pass twice, its moments written to a folder of its own.

`python -m torch.distributed.run … -m tests.collect.worker OUT [TEXTS]`: the long pass, or that over a file of real texts.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

warnings.simplefilter("error")

from lens.base.progress import Step  # noqa: E402
from lens.collect import write_moments  # noqa: E402
from lens.corpora import PARTS  # noqa: E402
from tests.collect.passes import long_pass, real_pass, write_often  # noqa: E402


def main(out: str, texts: str = "") -> None:
    """Report every step, and write `OUT/TURN/RANK/NAME-PART.safetensors`, which keep every bit."""
    rank = os.environ["RANK"]

    def say(words: str) -> None:
        # In one write: both processes have the same pipe, and torchrun takes Python's buffer away.
        os.write(1, f"{rank} {os.getpid()} {words}\n".encode())

    def report(step: Step) -> None:
        say(f"{step.label} {step.done}")

    write_often()
    for turn in ("first", "second"):
        found = real_pass(Path(texts), report) if texts else long_pass(report)
        for name in ("residual", *found.of_blocks):
            for part in PARTS:
                write_moments(getattr(found[name], part), Path(out) / turn / rank / f"{name}-{part}.safetensors")
        say(f"{turn} done")


if __name__ == "__main__":
    main(*sys.argv[1:])
