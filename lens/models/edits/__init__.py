"""Reversible edits of a live model: what stands in the module is changed for the body of a `with`, and only there.

An edit holds the model's lock from its first line to its last, so that no other thread runs an edited model
by mistake, and `model.edits`, `model.provenance()` and `model.fingerprint` tell that it is edited. Leaving
it, in whatever way and order, gives the module back bit for bit.
"""

from lens.models.edits.attention import AttentionChange, replace_attention
from lens.models.edits.blocks import BlockPart, StandIn, part_modules, replace_block
from lens.models.edits.order import change_states, remove_blocks, reorder_blocks, run_in_parallel, swap_blocks
from lens.models.edits.phases import horn_profile, phase_angles
from lens.models.edits.rope import RopeChange, TableChange, rope_base, rope_lanes, rope_table
from lens.models.edits.skips import SkipChange, remove_skips

__all__ = [
    "AttentionChange",
    "BlockPart",
    "RopeChange",
    "SkipChange",
    "StandIn",
    "TableChange",
    "change_states",
    "horn_profile",
    "part_modules",
    "phase_angles",
    "remove_blocks",
    "remove_skips",
    "reorder_blocks",
    "replace_attention",
    "replace_block",
    "rope_base",
    "rope_lanes",
    "rope_table",
    "run_in_parallel",
    "swap_blocks",
]
