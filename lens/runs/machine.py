"""What a run was made on: device, driver, libraries and code, as attributes of its results."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from lens.base.provenance import library_versions


def machine_facts(device: torch.device) -> dict[str, str | int]:
    """Device, driver, threads, operating system, commit of the code, and versions of the libraries.

    Args:
        device: that the run computes on.

    Returns:
        Attributes that netCDF can hold: `device_name`, `driver` (empty on a CPU), `threads`, `system`, `commit` (of the
        checkout that the package lies in, with `+` where files were changed; empty where it was installed) and versions.
    """
    cuda = device.type == "cuda"
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if cuda else processor_name(),
        "driver": _driver() if cuda else "",
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
        **library_versions(),
    }


def processor_name() -> str:
    """Model of the processor, as the system tells it; its architecture where it tells none."""
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """Commit of the checkout that this package lies in; empty where it lies in none, or where there is no git."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return ""
    found = _told(["git", "-C", str(folder), "rev-parse", "HEAD"])
    changed = _told(["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return f"{found}+" if found and changed else found


def peak_bytes(device: torch.device) -> int:
    """Most memory so far: of tensors on a CUDA device since the last reset, else of this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # kibibytes elsewhere


def load_average() -> float:
    """Processes that ran or waited to run over the last minute, this one among them: on a busy machine, timings are too long."""
    return round(os.getloadavg()[0], 2)


def _driver() -> str:
    lines = _told(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).splitlines()
    return lines[0] if lines else f"CUDA {torch.version.cuda}"


def _told(command: list[str]) -> str:
    """What a program prints; nothing where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
