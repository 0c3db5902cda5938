"""Panels: a model in, an ipywidgets panel out. They hold controls and events, and no mathematics of their own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lens.panels.absorbed_rotation import AbsorbedRotation as AbsorbedRotation
    from lens.panels.attention_atlas import AttentionAtlas as AttentionAtlas
    from lens.panels.claims import Claims as Claims
    from lens.panels.commuting import CommutingRotations as CommutingRotations
    from lens.panels.depth_collapse import DepthCollapse as DepthCollapse
    from lens.panels.depth_lab import DepthLab as DepthLab
    from lens.panels.early_exit import EarlyExit as EarlyExit
    from lens.panels.frozen_map import FrozenMap as FrozenMap
    from lens.panels.head_circuits import HeadCircuits as HeadCircuits
    from lens.panels.head_lanes import HeadLanes as HeadLanes
    from lens.panels.layer_linearity import LayerLinearity as LayerLinearity
    from lens.panels.linear_shortcuts import LinearShortcuts as LinearShortcuts
    from lens.panels.logit_lens import LogitLens as LogitLens
    from lens.panels.logit_lens import side_by_side as side_by_side
    from lens.panels.operator_zoo import OperatorZoo as OperatorZoo
    from lens.panels.phase_training import PhaseTraining as PhaseTraining
    from lens.panels.phase_view import PhaseView as PhaseView
    from lens.panels.phase_wheel import PhaseWheel as PhaseWheel
    from lens.panels.relations import Relations as Relations
    from lens.panels.rope_base import RopeBase as RopeBase
    from lens.panels.rope_bounds import RopeBounds as RopeBounds
    from lens.panels.rope_explorer import RopeExplorer as RopeExplorer
    from lens.panels.rotation_drift import RotationDrift as RotationDrift
    from lens.panels.token_microscope import TokenMicroscope as TokenMicroscope

# Public name -> the module that has it.
_PUBLIC = {
    "LogitLens": "logit_lens",
    "side_by_side": "logit_lens",
    "LinearShortcuts": "linear_shortcuts",
    "EarlyExit": "early_exit",
    "DepthLab": "depth_lab",
    "LayerLinearity": "layer_linearity",
    "RotationDrift": "rotation_drift",
    "Relations": "relations",
    "RopeExplorer": "rope_explorer",
    "RopeBounds": "rope_bounds",
    "RopeBase": "rope_base",
    "HeadLanes": "head_lanes",
    "CommutingRotations": "commuting",
    "AttentionAtlas": "attention_atlas",
    "OperatorZoo": "operator_zoo",
    "FrozenMap": "frozen_map",
    "HeadCircuits": "head_circuits",
    "DepthCollapse": "depth_collapse",
    "PhaseWheel": "phase_wheel",
    "AbsorbedRotation": "absorbed_rotation",
    "PhaseTraining": "phase_training",
    "TokenMicroscope": "token_microscope",
    "PhaseView": "phase_view",
    "Claims": "claims",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"lens.panels.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'lens.panels' has no attribute {name!r}")
