"""Which models a call names, and whether its key may call them."""

from collections.abc import Iterator

import msgspec

from paceline.gateway.keys.file import Key
from paceline.gateway.keys.quota import Refusal
from paceline.model.price import price_of
from paceline.wire.call import Dialect
from paceline.wire.http import HttpRequest

_MEMO_BYTES = 8 * 1024 * 1024
_ENTRY_BYTES = 500
_NO_MODEL = Refusal(status=400, code="invalid_request", message="the call names no model that this gateway can read")


class ModelCheck:
    """Holds calls to the models of their keys. What was found for a key, path and body is remembered."""

    def __init__(self) -> None:
        self._memo: dict[tuple[str, str, bytes], Refusal | bytes] = {}
        self._bytes = 0

    def unfit(self, key: Key, dialect: Dialect, path: str, request: HttpRequest) -> Refusal | None:
        """Why this key may not make this call. The body is replaced by one that names its model once.

        So a body with two models in it cannot mean one to us and the other to the provider. About 0.5 us for a call
        seen before, 10 us a KB for others.
        """
        if not key.models and not key.has_budget:
            return None
        asked = (key.id, path, request.body)
        found = self._memo.get(asked)
        if found is None:
            found = self._memo[asked] = _judged(key, dialect, path, request.body)
            self._bytes += 2 * len(request.body) + _ENTRY_BYTES
            if self._bytes > _MEMO_BYTES:
                self._memo.clear()
                self._bytes = 0
        if isinstance(found, Refusal):
            return found
        request.body = found
        return None


def _judged(key: Key, dialect: Dialect, path: str, body: bytes) -> Refusal | bytes:
    """Why not, or the body to send."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        model = msgspec.json.decode(fields["model"]) if "model" in fields else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _NO_MODEL
    models = list(_named(dialect, path, model))
    # A provider that ignores the case of names would read its model elsewhere.
    if not models or any(name != "model" and name.lower() == "model" for name in fields):
        return _NO_MODEL
    for name in models:
        refusal = _refused(key, name, dialect)
        if refusal is not None:
            return refusal
    return msgspec.json.encode(fields)


def _named(dialect: Dialect, path: str, model: object) -> Iterator[str]:
    """The model of the path (Gemini, Azure's deployments) and that of the body: providers follow one or the other."""
    in_path = dialect.model_of(path, {})
    in_body = dialect.model_of(path, {"model": model})
    if in_path:
        yield in_path
    if in_body and in_body != in_path:
        yield in_body


def _refused(key: Key, model: str, dialect: Dialect) -> Refusal | None:
    if not key.allows(model):
        msg = f"this gateway key may not use the model {model!r}; it may use {', '.join(key.models)}"
        return Refusal(status=403, code="model_not_allowed", message=msg)
    if key.has_budget and not key.models and not (price_of(model) or price_of(model, dialect.price_provider)):
        msg = f"the price of the model {model!r} is not known, so a key with a budget has to name it in its models"
        return Refusal(status=403, code="model_not_allowed", message=msg)
    return None
