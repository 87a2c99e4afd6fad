"""Routes: which model a step's calls go to instead of the one it asked for."""

from collections.abc import Sequence

import msgspec

from paceline.accelerate.policy import Route


def model_for(routes: Sequence[Route], step: str | None) -> str | None:
    """The model this step is routed to, by the first route that names it; None to leave the call alone."""
    return next((route.model for route in routes if route.step == step), None)


def with_model(body: bytes, model: str) -> bytes:
    """The same call to another model. Every other field keeps its very bytes; a body that is no object is unchanged."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)
