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
    from lens.models import edits as edits
    from lens.models.load import load as load
    from lens.models.model import Model as Model
    from lens.models.run import Run as Run
    from lens.probes.cka import cka as cka
    from lens.probes.compare_lenses import compare_lenses as compare_lenses
    from lens.probes.early_exit import early_exit as early_exit
    from lens.probes.kept import shipped_tuned_lens as shipped_tuned_lens
    from lens.probes.kept import shortcuts_for as shortcuts_for
    from lens.probes.linearity import linearity as linearity
    from lens.probes.logit_lens import follow_token as follow_token
    from lens.probes.logit_lens import logit_lens as logit_lens
    from lens.probes.procrustes import procrustes as procrustes
    from lens.probes.published_lens import load_published_lens as load_published_lens
    from lens.probes.replacement import cumulative_replacement as cumulative_replacement
    from lens.probes.replacement import replacement_cost as replacement_cost
    from lens.probes.rotation import rotation as rotation
    from lens.probes.shortcuts import fit_shortcuts as fit_shortcuts
    from lens.probes.shortcuts import load_shortcuts as load_shortcuts
    from lens.probes.shortcuts import noise_floor as noise_floor
    from lens.probes.spectrum import spectrum as spectrum
    from lens.probes.tuned_lens import fit_tuned_lens as fit_tuned_lens
    from lens.probes.tuned_lens import load_tuned_lens as load_tuned_lens
    from lens.probes.verdict import document_interval as document_interval
    from lens.probes.verdict import verdict as verdict

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
    "procrustes": "lens.probes.procrustes:procrustes",
    "rotation": "lens.probes.rotation:rotation",
    "cka": "lens.probes.cka:cka",
    "spectrum": "lens.probes.spectrum:spectrum",
    "replacement_cost": "lens.probes.replacement:replacement_cost",
    "cumulative_replacement": "lens.probes.replacement:cumulative_replacement",
    "edits": "lens.models.edits:",
    "linearity": "lens.probes.linearity:linearity",
    "document_interval": "lens.probes.verdict:document_interval",
    "verdict": "lens.probes.verdict:verdict",
    "table": "lens.figures.table:text_table",
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
