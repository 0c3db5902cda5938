"""The Three-Phase transformer, opened by transformers' `Auto` classes once this package is imported."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from lens.models.three_phase.configuration import ThreePhaseConfig as ThreePhaseConfig
from lens.models.three_phase.modeling import PhaseRMSNorm as PhaseRMSNorm
from lens.models.three_phase.modeling import PhaseRotation as PhaseRotation
from lens.models.three_phase.modeling import ThreePhaseForCausalLM as ThreePhaseForCausalLM
from lens.models.three_phase.modeling import ThreePhaseModel as ThreePhaseModel
from lens.models.three_phase.transport import absorb_rotation as absorb_rotation
from lens.models.three_phase.transport import stream_angles as stream_angles
from lens.models.three_phase.transport import transported_direction as transported_direction

AutoConfig.register(ThreePhaseConfig.model_type, ThreePhaseConfig)
AutoModel.register(ThreePhaseConfig, ThreePhaseModel)
AutoModelForCausalLM.register(ThreePhaseConfig, ThreePhaseForCausalLM)
