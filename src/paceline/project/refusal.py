"""Refusal: the one sentence that says why there is no projection."""


class Refusal(Exception):
    """Raised inside the room and turned into `Projection.refusal`; `str()` is the sentence."""
