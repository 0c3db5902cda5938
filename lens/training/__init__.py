"""Training of what cannot be fitted in closed form: one loop, its recipes, and the record of each run."""

from lens.training.loop import train as train
from lens.training.record import Recipe as Recipe
from lens.training.record import Record as Record
from lens.training.record import read_record as read_record
