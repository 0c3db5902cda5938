"""One pass over a corpus: windows of text through a model, moments of its states out."""

from lens.collect.files import read_moments as read_moments
from lens.collect.files import write_moments as write_moments
from lens.collect.gather import MomentParts as MomentParts
from lens.collect.gather import collect_moments as collect_moments
from lens.collect.windows import draw_windows as draw_windows
from lens.collect.windows import in_batches as in_batches
