"""The errors that a user can cause and mend.

Every message is one line with three parts: what was found, what was needed, what to try. Panels
show exactly this line; anything that is not a `LensError` is a bug and propagates.
"""

from __future__ import annotations


class LensError(Exception):
    """Base of all errors that `lens` raises on purpose.

    Args:
        found: what was found, as a clause without a final full stop.
        needed: what was needed instead.
        hint: what to try next.
    """

    def __init__(self, found: str, needed: str, hint: str):
        self.found, self.needed, self.hint = found, needed, hint
        super().__init__(" ".join(f"{found}. Needed: {needed}. Try: {hint}.".splitlines()))

    def __reduce__(self):
        # Exception pickles its formatted message; our constructor takes three parts.
        return (type(self), (self.found, self.needed, self.hint))


class InputError(LensError, ValueError):
    """A text, token id, option or file that cannot be used as it was given."""


class ModelNotFoundError(LensError, LookupError):
    """A model name or folder that leads to no model."""


class UnsupportedModelError(LensError):
    """A model that opens but is not a causal language model `lens` can read faithfully."""


class AnatomyError(UnsupportedModelError):
    """A module tree whose parts could not be found, or whose read-out is not the model's own."""


class FetchError(LensError):
    """A download that failed, or whose content is not the expected one."""


class DiskSpaceError(LensError, OSError):
    """Not enough room on disk for what is about to be written."""


class DeviceError(LensError):
    """A device that was asked for and is not there."""


class MemoryEstimateError(LensError, MemoryError):
    """A request whose result would not fit the stated memory bound."""


class Cancelled(LensError):
    """A computation that was stopped by its user or overtaken by a newer request."""

    def __init__(self, found: str = "The computation was cancelled", needed: str = "nothing", hint: str = "run it again"):
        super().__init__(found, needed, hint)
