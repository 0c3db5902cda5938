"""A laboratory for looking inside transformers.

`import lens` is light: torch, transformers and the drawing libraries are imported by the first
function that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lens import figures as figures
    from lens import panels as panels
    from lens.base.errors import LensError as LensError
    from lens.base.provenance import library_versions as versions
    from lens.base.text import visible as visible
    from lens.collect import collect_moments as collect_moments
    from lens.corpora import corpus as corpus
    from lens.figures.table import text_table as table
    from lens.figures.verdicts import verdict_table as verdict_table
    from lens.models import edits as edits
    from lens.models import operators as operators
    from lens.models.frequencies import rope_table as rope_table
    from lens.models.frozen import freeze as freeze
    from lens.models.head_weights import head_weights as head_weights
    from lens.models.heads import head_states as head_states
    from lens.models.load import load as load
    from lens.models.model import Model as Model
    from lens.models.rotary import rotaries as rotaries
    from lens.models.run import Run as Run
    from lens.models.three_phase import absorb_rotation as absorb_rotation
    from lens.models.vocabulary_maps import vocabulary_maps as vocabulary_maps
    from lens.probes.absorbed_rotation import absorbed_rotation as absorbed_rotation
    from lens.probes.adapted_lens import adapted_lens as adapted_lens
    from lens.probes.anisotropy import anisotropy as anisotropy
    from lens.probes.attention_battery import attention_battery as attention_battery
    from lens.probes.attention_battery import battery_cost as battery_cost
    from lens.probes.attention_battery import head_detail as head_detail
    from lens.probes.attention_claims import attention_claims as attention_claims
    from lens.probes.attention_claims import attention_verdicts as attention_verdicts
    from lens.probes.attention_entropy import attention_entropy as attention_entropy
    from lens.probes.attention_growth import attention_growth as attention_growth
    from lens.probes.attention_spectrum import attention_spectrum as attention_spectrum
    from lens.probes.attention_spectrum import logit_spectrum as logit_spectrum
    from lens.probes.attention_what_if import attention_what_if as attention_what_if
    from lens.probes.attention_what_if import attention_what_if_blocks as attention_what_if_blocks
    from lens.probes.attention_what_if import what_if_verdicts as what_if_verdicts
    from lens.probes.band_entropy import band_entropy as band_entropy
    from lens.probes.block_influence import block_influence as block_influence
    from lens.probes.cka import cka as cka
    from lens.probes.claims import claims as claims
    from lens.probes.claims import claims_by_paper as claims_by_paper
    from lens.probes.collapse_claims import collapse_claims as collapse_claims
    from lens.probes.collapse_claims import collapse_verdicts as collapse_verdicts
    from lens.probes.compare_lenses import compare_lenses as compare_lenses
    from lens.probes.conservation import conserved_quantities as conserved_quantities
    from lens.probes.conservation import gradient_identities as gradient_identities
    from lens.probes.contextualisation import contextualisation as contextualisation
    from lens.probes.contextualisation import shipped_prefix_decoder as shipped_prefix_decoder
    from lens.probes.copying_behaviour import copying_behaviour as copying_behaviour
    from lens.probes.copying_claims import copying_claims as copying_claims
    from lens.probes.copying_claims import copying_verdicts as copying_verdicts
    from lens.probes.deletion_test import deletion_test as deletion_test
    from lens.probes.depth_claims import depth_claims as depth_claims
    from lens.probes.depth_claims import depth_verdicts as depth_verdicts
    from lens.probes.depth_curves import block_rankings as block_rankings
    from lens.probes.depth_curves import depth_curves as depth_curves
    from lens.probes.depth_edits import depth_edits as depth_edits
    from lens.probes.depth_record import shipped_depth_claims as shipped_depth_claims
    from lens.probes.drift_claims import drift_profile as drift_profile
    from lens.probes.drift_claims import drift_verdicts as drift_verdicts
    from lens.probes.early_exit import early_exit as early_exit
    from lens.probes.frozen_claims import frozen_claims as frozen_claims
    from lens.probes.frozen_claims import frozen_verdicts as frozen_verdicts
    from lens.probes.frozen_map import frozen_contributions as frozen_contributions
    from lens.probes.frozen_spectrum import frozen_map_spectrum as frozen_map_spectrum
    from lens.probes.hidden_dimensions import channel_cost as channel_cost
    from lens.probes.hidden_dimensions import hidden_dimensions as hidden_dimensions
    from lens.probes.horn_effect import horn_cost as horn_cost
    from lens.probes.horn_effect import horn_logits as horn_logits
    from lens.probes.horn_transport import horn_transport as horn_transport
    from lens.probes.horn_transport import horn_verdicts as horn_verdicts
    from lens.probes.intrinsic_dimension import intrinsic_dimension as intrinsic_dimension
    from lens.probes.kept import shipped_tuned_lens as shipped_tuned_lens
    from lens.probes.kept import shortcuts_for as shortcuts_for
    from lens.probes.lane_claims import lane_claims as lane_claims
    from lens.probes.lane_claims import lane_verdicts as lane_verdicts
    from lens.probes.lanes import lane_logits as lane_logits
    from lens.probes.lanes import lane_offsets as lane_offsets
    from lens.probes.lanes import lane_usage as lane_usage
    from lens.probes.layer_spectrum import layer_spectrum as layer_spectrum
    from lens.probes.layer_spectrum import power_law as power_law
    from lens.probes.linearity import linearity as linearity
    from lens.probes.log_normality import log_normality as log_normality
    from lens.probes.logit_lens import follow_token as follow_token
    from lens.probes.logit_lens import logit_lens as logit_lens
    from lens.probes.low_pass import attention_factors as attention_factors
    from lens.probes.low_pass import attention_response as attention_response
    from lens.probes.low_pass import low_pass as low_pass
    from lens.probes.low_rank_attention import low_rank_attention as low_rank_attention
    from lens.probes.low_rank_attention import low_rank_verdicts as low_rank_verdicts
    from lens.probes.microscope_claims import microscope_claims as microscope_claims
    from lens.probes.microscope_claims import microscope_verdicts as microscope_verdicts
    from lens.probes.offset_profile import offset_profile as offset_profile
    from lens.probes.offset_profile import shuffled_profile as shuffled_profile
    from lens.probes.operator_zoo import operator_zoo as operator_zoo
    from lens.probes.ov_circuit import arriving_states as arriving_states
    from lens.probes.ov_circuit import ov_circuit as ov_circuit
    from lens.probes.ov_directions import ov_directions as ov_directions
    from lens.probes.phase_balance import phase_balance as phase_balance
    from lens.probes.phase_claims import phase_verdicts as phase_verdicts
    from lens.probes.phase_correlation import phase_correlation as phase_correlation
    from lens.probes.phase_family import family_differences as family_differences
    from lens.probes.phase_family import paired_runs as paired_runs
    from lens.probes.phase_family import phase_family as phase_family
    from lens.probes.phase_published import published_runs as published_runs
    from lens.probes.phase_training import phase_training as phase_training
    from lens.probes.phase_turn import phase_turn as phase_turn
    from lens.probes.phase_view import phase_view as phase_view
    from lens.probes.phase_wheel import family_losses as family_losses
    from lens.probes.phase_wheel import phase_wheel as phase_wheel
    from lens.probes.phase_wheel import recipe_drift as recipe_drift
    from lens.probes.positional_kernel import key_order as key_order
    from lens.probes.positional_kernel import positional_kernel as positional_kernel
    from lens.probes.prefix_decoder import fit_prefix_decoder as fit_prefix_decoder
    from lens.probes.prefix_decoder import load_prefix_decoder as load_prefix_decoder
    from lens.probes.procrustes import procrustes as procrustes
    from lens.probes.published_lens import load_published_lens as load_published_lens
    from lens.probes.qk_circuit import qk_circuit as qk_circuit
    from lens.probes.random_tokens import repeated_tokens as repeated_tokens
    from lens.probes.rank_collapse import rank_collapse as rank_collapse
    from lens.probes.relation_claims import relation_shares as relation_shares
    from lens.probes.relation_claims import relation_table as relation_table
    from lens.probes.relation_claims import relation_verdicts as relation_verdicts
    from lens.probes.relation_layers import relation_layers as relation_layers
    from lens.probes.relation_map import fit_relation_map as fit_relation_map
    from lens.probes.relation_map import load_relation_map as load_relation_map
    from lens.probes.relation_record import relation_record as relation_record
    from lens.probes.relations import relation_task as relation_task
    from lens.probes.relations import relations as relations
    from lens.probes.relative_kernel import relative_kernel as relative_kernel
    from lens.probes.replacement import cumulative_replacement as cumulative_replacement
    from lens.probes.replacement import replacement_cost as replacement_cost
    from lens.probes.rope import rope_frequencies as rope_frequencies
    from lens.probes.rope import rope_kernel as rope_kernel
    from lens.probes.rope_bounds import rope_bounds as rope_bounds
    from lens.probes.rope_compare import compare_rope as compare_rope
    from lens.probes.rope_practice import rope_practice as rope_practice
    from lens.probes.rope_precision import rope_precision as rope_precision
    from lens.probes.rope_problems import rope_problems as rope_problems
    from lens.probes.rope_sweep import lane_ablations as lane_ablations
    from lens.probes.rope_sweep import rope_sweep as rope_sweep
    from lens.probes.rope_training import rope_training as rope_training
    from lens.probes.rope_training import rope_training_verdicts as rope_training_verdicts
    from lens.probes.rope_verdicts import bounds_to_try as bounds_to_try
    from lens.probes.rope_verdicts import breaking_points as breaking_points
    from lens.probes.rope_verdicts import rope_verdicts as rope_verdicts
    from lens.probes.rotation import rotation as rotation
    from lens.probes.shortcuts import fit_shortcuts as fit_shortcuts
    from lens.probes.shortcuts import load_shortcuts as load_shortcuts
    from lens.probes.shortcuts import noise_floor as noise_floor
    from lens.probes.spectrum import spectrum as spectrum
    from lens.probes.theta_drift import published_drift as published_drift
    from lens.probes.theta_drift import theta_drift as theta_drift
    from lens.probes.token_ablations import token_ablations as token_ablations
    from lens.probes.token_classes import token_classes as token_classes
    from lens.probes.token_nonlinearity import token_nonlinearity as token_nonlinearity
    from lens.probes.token_spectrum import band_readout as band_readout
    from lens.probes.token_spectrum import token_spectrum as token_spectrum
    from lens.probes.tuned_lens import fit_tuned_lens as fit_tuned_lens
    from lens.probes.tuned_lens import load_tuned_lens as load_tuned_lens
    from lens.probes.turned_lens import TurnedLens as TurnedLens
    from lens.probes.verdict import document_interval as document_interval
    from lens.probes.verdict import verdict as verdict
    from lens.report.write import write_report as write_report
    from lens.runs.shipped import run_record as run_record
    from lens.runs.shipped import run_records as run_records
    from lens.training.three_phase import train_three_phase as train_three_phase

# Public name -> where it lives. A public function never shares its name with a direct submodule:
# importing the submodule would replace the function.
_PUBLIC = {
    "load": "lens.models.load:load",
    "Model": "lens.models.model:Model",
    "Run": "lens.models.run:Run",
    "LensError": "lens.base.errors:LensError",
    "logit_lens": "lens.probes.logit_lens:logit_lens",
    "follow_token": "lens.probes.logit_lens:follow_token",
    "corpus": "lens.corpora:corpus",
    "collect_moments": "lens.collect:collect_moments",
    "fit_shortcuts": "lens.probes.shortcuts:fit_shortcuts",
    "load_shortcuts": "lens.probes.shortcuts:load_shortcuts",
    "noise_floor": "lens.probes.shortcuts:noise_floor",
    "compare_lenses": "lens.probes.compare_lenses:compare_lenses",
    "early_exit": "lens.probes.early_exit:early_exit",
    "shortcuts_for": "lens.probes.kept:shortcuts_for",
    "fit_tuned_lens": "lens.probes.tuned_lens:fit_tuned_lens",
    "load_tuned_lens": "lens.probes.tuned_lens:load_tuned_lens",
    "load_published_lens": "lens.probes.published_lens:load_published_lens",
    "shipped_tuned_lens": "lens.probes.kept:shipped_tuned_lens",
    "freeze": "lens.models.frozen:freeze",
    "frozen_contributions": "lens.probes.frozen_map:frozen_contributions",
    "frozen_map_spectrum": "lens.probes.frozen_spectrum:frozen_map_spectrum",
    "token_ablations": "lens.probes.token_ablations:token_ablations",
    "frozen_claims": "lens.probes.frozen_claims:frozen_claims",
    "frozen_verdicts": "lens.probes.frozen_claims:frozen_verdicts",
    "procrustes": "lens.probes.procrustes:procrustes",
    "rotation": "lens.probes.rotation:rotation",
    "cka": "lens.probes.cka:cka",
    "spectrum": "lens.probes.spectrum:spectrum",
    "replacement_cost": "lens.probes.replacement:replacement_cost",
    "cumulative_replacement": "lens.probes.replacement:cumulative_replacement",
    "rope_table": "lens.models.frequencies:rope_table",
    "head_states": "lens.models.heads:head_states",
    "rope_frequencies": "lens.probes.rope:rope_frequencies",
    "rope_kernel": "lens.probes.rope:rope_kernel",
    "rope_bounds": "lens.probes.rope_bounds:rope_bounds",
    "rope_practice": "lens.probes.rope_practice:rope_practice",
    "rope_problems": "lens.probes.rope_problems:rope_problems",
    "rope_precision": "lens.probes.rope_precision:rope_precision",
    "rope_sweep": "lens.probes.rope_sweep:rope_sweep",
    "lane_ablations": "lens.probes.rope_sweep:lane_ablations",
    "rope_verdicts": "lens.probes.rope_verdicts:rope_verdicts",
    "breaking_points": "lens.probes.rope_verdicts:breaking_points",
    "bounds_to_try": "lens.probes.rope_verdicts:bounds_to_try",
    "rotaries": "lens.models.rotary:rotaries",
    "compare_rope": "lens.probes.rope_compare:compare_rope",
    "rope_training": "lens.probes.rope_training:rope_training",
    "rope_training_verdicts": "lens.probes.rope_training:rope_training_verdicts",
    "attention_spectrum": "lens.probes.attention_spectrum:attention_spectrum",
    "attention_entropy": "lens.probes.attention_entropy:attention_entropy",
    "log_normality": "lens.probes.log_normality:log_normality",
    "offset_profile": "lens.probes.offset_profile:offset_profile",
    "attention_battery": "lens.probes.attention_battery:attention_battery",
    "battery_cost": "lens.probes.attention_battery:battery_cost",
    "head_detail": "lens.probes.attention_battery:head_detail",
    "attention_growth": "lens.probes.attention_growth:attention_growth",
    "rank_collapse": "lens.probes.rank_collapse:rank_collapse",
    "token_spectrum": "lens.probes.token_spectrum:token_spectrum",
    "layer_spectrum": "lens.probes.layer_spectrum:layer_spectrum",
    "low_pass": "lens.probes.low_pass:low_pass",
    "ov_circuit": "lens.probes.ov_circuit:ov_circuit",
    "qk_circuit": "lens.probes.qk_circuit:qk_circuit",
    "copying_behaviour": "lens.probes.copying_behaviour:copying_behaviour",
    "operator_zoo": "lens.probes.operator_zoo:operator_zoo",
    "attention_what_if": "lens.probes.attention_what_if:attention_what_if",
    "low_rank_attention": "lens.probes.low_rank_attention:low_rank_attention",
    "attention_claims": "lens.probes.attention_claims:attention_claims",
    "attention_verdicts": "lens.probes.attention_claims:attention_verdicts",
    "collapse_claims": "lens.probes.collapse_claims:collapse_claims",
    "collapse_verdicts": "lens.probes.collapse_claims:collapse_verdicts",
    "copying_claims": "lens.probes.copying_claims:copying_claims",
    "copying_verdicts": "lens.probes.copying_claims:copying_verdicts",
    "low_rank_verdicts": "lens.probes.low_rank_attention:low_rank_verdicts",
    "what_if_verdicts": "lens.probes.attention_what_if:what_if_verdicts",
    "logit_spectrum": "lens.probes.attention_spectrum:logit_spectrum",
    "shuffled_profile": "lens.probes.offset_profile:shuffled_profile",
    "arriving_states": "lens.probes.ov_circuit:arriving_states",
    "ov_directions": "lens.probes.ov_directions:ov_directions",
    "repeated_tokens": "lens.probes.random_tokens:repeated_tokens",
    "attention_response": "lens.probes.low_pass:attention_response",
    "attention_factors": "lens.probes.low_pass:attention_factors",
    "band_readout": "lens.probes.token_spectrum:band_readout",
    "power_law": "lens.probes.layer_spectrum:power_law",
    "relative_kernel": "lens.probes.relative_kernel:relative_kernel",
    "attention_what_if_blocks": "lens.probes.attention_what_if:attention_what_if_blocks",
    "vocabulary_maps": "lens.models.vocabulary_maps:vocabulary_maps",
    "head_weights": "lens.models.head_weights:head_weights",
    "theta_drift": "lens.probes.theta_drift:theta_drift",
    "published_drift": "lens.probes.theta_drift:published_drift",
    "phase_balance": "lens.probes.phase_balance:phase_balance",
    "phase_correlation": "lens.probes.phase_correlation:phase_correlation",
    "phase_turn": "lens.probes.phase_turn:phase_turn",
    "phase_wheel": "lens.probes.phase_wheel:phase_wheel",
    "recipe_drift": "lens.probes.phase_wheel:recipe_drift",
    "family_losses": "lens.probes.phase_wheel:family_losses",
    "TurnedLens": "lens.probes.turned_lens:TurnedLens",
    "absorbed_rotation": "lens.probes.absorbed_rotation:absorbed_rotation",
    "drift_profile": "lens.probes.drift_claims:drift_profile",
    "drift_verdicts": "lens.probes.drift_claims:drift_verdicts",
    "horn_transport": "lens.probes.horn_transport:horn_transport",
    "horn_verdicts": "lens.probes.horn_transport:horn_verdicts",
    "phase_view": "lens.probes.phase_view:phase_view",
    "conserved_quantities": "lens.probes.conservation:conserved_quantities",
    "gradient_identities": "lens.probes.conservation:gradient_identities",
    "horn_cost": "lens.probes.horn_effect:horn_cost",
    "horn_logits": "lens.probes.horn_effect:horn_logits",
    "published_runs": "lens.probes.phase_published:published_runs",
    "train_three_phase": "lens.training.three_phase:train_three_phase",
    "run_record": "lens.runs.shipped:run_record",
    "run_records": "lens.runs.shipped:run_records",
    "phase_training": "lens.probes.phase_training:phase_training",
    "phase_family": "lens.probes.phase_family:phase_family",
    "paired_runs": "lens.probes.phase_family:paired_runs",
    "family_differences": "lens.probes.phase_family:family_differences",
    "phase_verdicts": "lens.probes.phase_claims:phase_verdicts",
    "absorb_rotation": "lens.models.three_phase:absorb_rotation",
    "lane_usage": "lens.probes.lanes:lane_usage",
    "lane_logits": "lens.probes.lanes:lane_logits",
    "lane_offsets": "lens.probes.lanes:lane_offsets",
    "positional_kernel": "lens.probes.positional_kernel:positional_kernel",
    "key_order": "lens.probes.positional_kernel:key_order",
    "band_entropy": "lens.probes.band_entropy:band_entropy",
    "lane_claims": "lens.probes.lane_claims:lane_claims",
    "lane_verdicts": "lens.probes.lane_claims:lane_verdicts",
    "token_nonlinearity": "lens.probes.token_nonlinearity:token_nonlinearity",
    "token_classes": "lens.probes.token_classes:token_classes",
    "contextualisation": "lens.probes.contextualisation:contextualisation",
    "shipped_prefix_decoder": "lens.probes.contextualisation:shipped_prefix_decoder",
    "fit_prefix_decoder": "lens.probes.prefix_decoder:fit_prefix_decoder",
    "load_prefix_decoder": "lens.probes.prefix_decoder:load_prefix_decoder",
    "intrinsic_dimension": "lens.probes.intrinsic_dimension:intrinsic_dimension",
    "anisotropy": "lens.probes.anisotropy:anisotropy",
    "adapted_lens": "lens.probes.adapted_lens:adapted_lens",
    "deletion_test": "lens.probes.deletion_test:deletion_test",
    "microscope_claims": "lens.probes.microscope_claims:microscope_claims",
    "microscope_verdicts": "lens.probes.microscope_claims:microscope_verdicts",
    "block_influence": "lens.probes.block_influence:block_influence",
    "depth_claims": "lens.probes.depth_claims:depth_claims",
    "depth_verdicts": "lens.probes.depth_claims:depth_verdicts",
    "shipped_depth_claims": "lens.probes.depth_record:shipped_depth_claims",
    "block_rankings": "lens.probes.depth_curves:block_rankings",
    "depth_curves": "lens.probes.depth_curves:depth_curves",
    "depth_edits": "lens.probes.depth_edits:depth_edits",
    "channel_cost": "lens.probes.hidden_dimensions:channel_cost",
    "hidden_dimensions": "lens.probes.hidden_dimensions:hidden_dimensions",
    "edits": "lens.models.edits:",
    "operators": "lens.models.operators:",
    "relations": "lens.probes.relations:relations",
    "relation_task": "lens.probes.relations:relation_task",
    "fit_relation_map": "lens.probes.relation_map:fit_relation_map",
    "load_relation_map": "lens.probes.relation_map:load_relation_map",
    "relation_layers": "lens.probes.relation_layers:relation_layers",
    "relation_shares": "lens.probes.relation_claims:relation_shares",
    "relation_table": "lens.probes.relation_claims:relation_table",
    "relation_verdicts": "lens.probes.relation_claims:relation_verdicts",
    "relation_record": "lens.probes.relation_record:relation_record",
    "linearity": "lens.probes.linearity:linearity",
    "document_interval": "lens.probes.verdict:document_interval",
    "verdict": "lens.probes.verdict:verdict",
    "claims": "lens.probes.claims:claims",
    "claims_by_paper": "lens.probes.claims:claims_by_paper",
    "table": "lens.figures.table:text_table",
    "verdict_table": "lens.figures.verdicts:verdict_table",
    "write_report": "lens.report.write:write_report",
    "visible": "lens.base.text:visible",
    "versions": "lens.base.provenance:library_versions",
    "panels": "lens.panels:",
    "figures": "lens.figures:",
    "__version__": "lens.base.provenance:lens_version()",
}

__all__ = [name for name in _PUBLIC if not name.startswith("_")]


def __getattr__(name: str) -> Any:
    place = _PUBLIC.get(name)
    if place is None:
        raise AttributeError(f"module 'lens' has no attribute {name!r}")
    module, _, attribute = place.partition(":")
    found: Any = importlib.import_module(module)
    if attribute.endswith("()"):
        return getattr(found, attribute[:-2])()
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
