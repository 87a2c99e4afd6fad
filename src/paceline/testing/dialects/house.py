"""What a provider's house does in a way of its own: reading calls, wording answers and refusals, naming limits."""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from paceline.testing.buckets import Limit
from paceline.testing.config import MAX_DIMENSIONS, Model
from paceline.testing.exchange import ApiError, Completion, Headers, ModelCall
from paceline.wire.http import HttpRequest

MAX_INPUTS = 2048  # of one embeddings call


class Excess(msgspec.Struct, frozen=True, kw_only=True):
    """A call over a limit. `wait_s` is wall time; `inf`: it will never fit."""

    model: str
    what: str  # "requests", "tokens"
    per_min: float
    asked: int
    wait_s: float

    @property
    def never_fits(self) -> bool:
        """True when waiting does not help."""
        return math.isinf(self.wait_s)


class Encoder(Protocol):
    """Words one answer as a stream. Nothing is encoded twice: there are many pieces."""

    content_type: bytes

    def first(self) -> bytes:
        """What comes with the first token, before it."""

    def piece(self, block: int, text: str) -> bytes:
        """Some text of the block of that number; blocks come in order and each ends where the next begins."""

    def last(self) -> bytes:
        """Why it ended, the usage, and the end."""


class Form(Protocol):
    """One of a house's kinds of call that are answered with text."""

    def read(self, request: HttpRequest, call: dict[str, Any]) -> ModelCall:
        """Check and take a call apart. Raises ApiError as the provider would."""

    def body(self, done: Completion) -> bytes:
        """The plain answer."""

    def encoder(self, request: HttpRequest, done: Completion) -> Encoder:
        """The streamed answer."""


class House:
    """A provider. What is here is what they have in common."""

    name = ""

    def key_of(self, request: HttpRequest) -> str:
        """The API key as sent, "" without one."""
        scheme, _, key = (request.header("authorization") or "").partition(" ")
        return key.strip() if scheme.casefold() == "bearer" else ""

    def headers(self, serial: int, took_ms: int) -> Headers:
        """Headers of every reply."""
        raise NotImplementedError

    def limit_headers(self, limits: list[Limit]) -> Headers:
        """Headers that say what is left."""
        raise NotImplementedError

    def error(self, error: ApiError, serial: int) -> tuple[Headers, bytes]:
        """A refusal in the provider's words: headers of its own, and the body."""
        raise NotImplementedError

    def form(self, path: str) -> Form:
        """How calls to this path, which asks for text, are read and answered."""
        raise NotImplementedError

    def prompt_of(self, call: dict[str, Any]) -> object:
        """The part of a call that decides what is answered."""
        raise NotImplementedError

    def models(self, path: str, models: dict[str, Model]) -> bytes:
        """The list of models, or the one the path ends with. Raises ApiError 404."""
        raise NotImplementedError

    def read_embeddings(self, call: dict[str, Any], default_dimensions: int) -> tuple[list[str], int]:
        """Texts and dimensions asked for. Raises ApiError."""
        raise NotImplementedError

    def embeddings(self, path: str, call: dict[str, Any], vectors: Iterator[list[float]], tokens: int) -> bytes:
        """The answer to an embeddings call."""
        raise NotImplementedError

    def read_counted(self, call: dict[str, Any]) -> list[tuple[str, str]]:
        """The (role, text) turns of a call that only counts tokens. Raises ApiError."""
        raise NotImplementedError

    def counted(self, tokens: int) -> bytes:
        """The answer to a call that only counts tokens."""
        raise NotImplementedError

    # --- refusals ----------------------------------------------------------------------------------------------------

    def wrong_key(self, key: str) -> ApiError:
        """The key is missing, or none of those configured."""
        return ApiError(401, "invalid API key" if key else "no API key was given")

    def unknown_path(self, method: str, path: str) -> ApiError:
        """There is nothing there."""
        return ApiError(404, f"not found: {method} {path}")

    def not_json(self) -> ApiError:
        """The body is no JSON object."""
        return ApiError(400, "the request body is not a JSON object")

    def no_model(self) -> ApiError:
        """The call names no model."""
        return ApiError(400, "model: Field required")

    def unknown_model(self, name: str) -> ApiError:
        """The model is not there."""
        return ApiError(404, f"model: {name}")

    def wrong_kind(self, name: str, kind: str, path: str) -> ApiError:
        """The model is there, for another kind of call."""
        return ApiError(400, f"the {kind} model {name} is not supported at {path}")

    def too_long(self, limit: int, tokens: int) -> ApiError:
        """The prompt is longer than the model takes."""
        return ApiError(400, f"prompt is too long: {tokens} tokens > {limit} maximum")

    def over_limit(self, excess: Excess, headers: Headers) -> ApiError:
        """A limit is reached."""
        raise NotImplementedError

    def overloaded(self) -> ApiError:
        """The provider has too much to do."""
        raise NotImplementedError

    def broken(self) -> ApiError:
        """Something went wrong on its side."""
        return ApiError(500, "Internal server error")


def check_dimensions(wanted: object, name: str) -> int:
    """The dimensions asked for. Raises ApiError 400."""
    if not isinstance(wanted, int) or not 1 <= wanted <= MAX_DIMENSIONS:
        raise ApiError(400, f"'{name}' must be 1 to {MAX_DIMENSIONS}; got {wanted!r}", param=name)
    return wanted


def event(data: object, name: str = "") -> bytes:
    """A server-sent event, with its name where the provider sends one."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"
