"""Peak memory of the corpus pass: what it keeps is sums, so that ten times the tokens take no more.

Each pass runs in a process of its own, on one torch thread and into an empty cache; the peak is that process's VmHWM.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import lens
from lens.models.fetch import pull
from tests.benchmarks.measure import GIB, Row

GOAL = 1.05
_PASS = """
import os, sys
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
import lens
from lens.models.fetch import pull

name, tokens, cache = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if name == "random llama":
    torch.manual_seed(0)
    shape = {"vocab_size": 49152, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape)).eval()
    model, parts = lens.load(module, AutoTokenizer.from_pretrained(pull("smollm2-135m"))), ("residual", "mlp")
else:
    model, parts = lens.load(name, device="cpu"), ("residual",)
corpus = lens.corpus("wikipedia")
os.environ["LENS_CACHE"] = cache
found = lens.collect_moments(model, corpus, tokens=tokens, parts=parts)
assert sum(found.train.dropped.values()) + found.train.count > 0.99 * tokens
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) * 1024)
"""


def rows(repeats: int) -> list[Row]:
    """A model of 8 layers of 256 at 10,000 and 100,000 tokens, parts of its blocks included; SmolLM2 at 2,000 and 20,000."""
    pull("smollm2-135m")
    lens.corpus("wikipedia")
    return [_row("random llama", 10_000, 100_000, repeats), _row("smollm2-135m", 2_000, 20_000, repeats)]


def _row(name: str, few: int, many: int, repeats: int) -> Row:
    """The largest peak of the long pass beside the largest of the short one; one round is enough for such figures."""
    rounds = range(min(repeats, 2))
    short, long = (max(_peak(name, tokens) for _ in rounds) for tokens in (few, many))
    return Row(f"peak memory of a pass, {name}: {many:,} tokens / {few:,}", long / GIB, short / GIB, GOAL, unit="GiB")


def _peak(name: str, tokens: int) -> int:
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", _PASS, name, str(tokens), cache]
        settings = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    return int(done.stdout.splitlines()[-1])
