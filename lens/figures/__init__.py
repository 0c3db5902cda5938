"""Pictures: a Dataset from a probe in, a figure or the description of a grid out. Nothing here computes a result."""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = (
    "absorbed_rotation",
    "attention_claims",
    "chart",
    "chart_page",
    "claims",
    "commuting",
    "depth_lab",
    "early_exit",
    "export",
    "frozen_map",
    "head_circuits",
    "head_grid",
    "head_grid_page",
    "head_lanes",
    "inline_svg",
    "lane_claims",
    "layer_linearity",
    "linear_shortcuts",
    "logit_lens",
    "low_rank_attention",
    "operator_zoo",
    "page",
    "phase_family",
    "phase_view",
    "phase_wheel",
    "rank_collapse",
    "relations",
    "report",
    "report_plots",
    "rope_base",
    "rope_bounds",
    "rope_explorer",
    "rope_precision",
    "rope_sweep",
    "rope_training",
    "rotation_drift",
    "run_record",
    "static",
    "static_chart",
    "theta_drift",
    "token_microscope",
    "verdicts",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"lens.figures.{name}")
    raise AttributeError(f"module 'lens.figures' has no attribute {name!r}")
