"""OpenAI's house: errors, limits, models, embeddings. How it words text is in `openai_chat` and `openai_responses`."""

import base64
import math
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from paceline.testing.buckets import Limit, go_duration
from paceline.testing.config import Model
from paceline.testing.dialects.house import MAX_INPUTS, Excess, Form, House, check_dimensions
from paceline.testing.dialects.openai_chat import CHAT, COMPLETION
from paceline.testing.dialects.openai_responses import RESPONSES
from paceline.testing.exchange import ApiError, Headers

_FORMS: dict[str, Form] = {"chat/completions": CHAT, "completions": COMPLETION, "responses": RESPONSES}
_MODELS = "/models"
_TYPES = {429: "requests"}
_CODES = {429: "rate_limit_exceeded"}
_CAUSES = {"requests": "requests per min (RPM)", "tokens": "tokens per min (TPM)"}


class OpenAIHouse(House):
    """OpenAI."""

    name = "openai"

    def headers(self, serial: int, took_ms: int) -> Headers:
        """The request's id and the time it took."""
        return [(b"x-request-id", b"req_%032x" % serial), (b"openai-processing-ms", b"%d" % took_ms)]

    def limit_headers(self, limits: list[Limit]) -> Headers:
        """`x-ratelimit-*`; resets are durations as Go writes them."""
        found: list[tuple[str, str]] = []
        for limit in limits:
            found += [
                (f"limit-{limit.what}", f"{limit.per_min:.0f}"),
                (f"remaining-{limit.what}", str(limit.remaining)),
                (f"reset-{limit.what}", go_duration(limit.reset_s)),
            ]
        return [(f"x-ratelimit-{name}".encode(), value.encode()) for name, value in found]

    def error(self, error: ApiError, serial: int) -> tuple[Headers, bytes]:
        """A refusal; how long to wait stands in two headers.

        Whole seconds as providers send them; the milliseconds, which SDKs prefer, are exact at any speed.
        """
        headers: Headers = []
        if error.retry_after_s is not None:
            headers.append((b"retry-after-ms", b"%d" % math.ceil(error.retry_after_s * 1000)))
            headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after_s)))
        default = "server_error" if error.status >= 500 else _TYPES.get(error.status, "invalid_request_error")
        told = {
            "message": error.message,
            "type": error.type or default,
            "param": error.param,
            "code": error.code or _CODES.get(error.status),
        }
        return headers, msgspec.json.encode({"error": told})

    def form(self, path: str) -> Form:
        """Chat completions, completions, responses."""
        return next(form for end, form in _FORMS.items() if path.endswith(end))

    def prompt_of(self, call: dict[str, Any]) -> object:
        """Messages, input or prompt."""
        if "messages" in call:
            return call["messages"]
        said = call.get("input", call.get("prompt"))
        return [call["instructions"], said] if call.get("instructions") else said

    def models(self, path: str, models: dict[str, Model]) -> bytes:
        """The list, or one."""
        made = {
            name: {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "paceline"} for name in models
        }
        wanted = path.rpartition(_MODELS)[2].strip("/")
        if not wanted:
            return msgspec.json.encode({"object": "list", "data": list(made.values())})
        if wanted not in made:
            raise self.unknown_model(wanted)
        return msgspec.json.encode(made[wanted])

    def read_embeddings(self, call: dict[str, Any], default_dimensions: int) -> tuple[list[str], int]:
        """Texts or token numbers."""
        texts = _inputs(call.get("input"))
        if not texts or any(not text for text in texts):
            what = "'input' must be a text, or a non-empty array of texts or of token numbers; none empty"
            raise ApiError(400, what, param="input")
        if len(texts) > MAX_INPUTS:
            raise ApiError(400, f"'input' must have at most {MAX_INPUTS} items; got {len(texts)}", param="input")
        dimensions = check_dimensions(call.get("dimensions", default_dimensions), "dimensions")
        if call.get("encoding_format", "float") not in ("float", "base64"):
            what = f"'encoding_format' must be float or base64; got {call['encoding_format']!r}"
            raise ApiError(400, what, param="encoding_format")
        return texts, dimensions

    def embeddings(self, path: str, call: dict[str, Any], vectors: Iterator[list[float]], tokens: int) -> bytes:
        """Numbers, or little-endian floats in base64."""
        packed = call.get("encoding_format") == "base64"

        def shown(vector: list[float]) -> list[float] | str:
            return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if packed else vector

        data = [{"object": "embedding", "index": i, "embedding": shown(vector)} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return msgspec.json.encode({"object": "list", "data": data, "model": call["model"], "usage": usage})

    def wrong_key(self, key: str) -> ApiError:
        """401."""
        if not key:
            return ApiError(401, "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
        return ApiError(401, f"Incorrect API key provided: {key[:4]}***.", code="invalid_api_key")

    def unknown_path(self, method: str, path: str) -> ApiError:
        """404."""
        return ApiError(404, f"Invalid URL ({method} {path})")

    def not_json(self) -> ApiError:
        """400."""
        return ApiError(400, "We could not parse the JSON body of your request: it must be a JSON object.")

    def no_model(self) -> ApiError:
        """400."""
        return ApiError(400, "you must provide a model parameter")

    def unknown_model(self, name: str) -> ApiError:
        """404."""
        what = f"The model `{name}` does not exist or you do not have access to it."
        return ApiError(404, what, code="model_not_found", param="model")

    def wrong_kind(self, name: str, kind: str, path: str) -> ApiError:
        """403."""
        return ApiError(403, f"You are not allowed to use the {kind} model {name} on {path}")

    def too_long(self, limit: int, tokens: int) -> ApiError:
        """400."""
        what = f"This model's maximum context length is {limit} tokens. However, you sent {tokens} tokens."
        return ApiError(400, f"{what} Please reduce the length of the input.", code="context_length_exceeded")

    def over_limit(self, excess: Excess, headers: Headers) -> ApiError:
        """429."""
        where = f"for {excess.model} on {_CAUSES[excess.what]}: Limit {excess.per_min:.0f}, Requested {excess.asked}."
        if excess.never_fits:
            what = f"Request too large {where} The input or output tokens must be reduced in order to run successfully."
            return ApiError(429, what, type=excess.what, headers=headers)
        what = f"Rate limit reached {where} Please try again in {go_duration(excess.wait_s)}."
        return ApiError(429, what, type=excess.what, headers=headers, retry_after_s=excess.wait_s)

    def overloaded(self) -> ApiError:
        """503."""
        what = "The server is currently overloaded with other requests. Sorry about that! Please try again."
        return ApiError(503, what)

    def broken(self) -> ApiError:
        """500."""
        return ApiError(500, "The server had an error while processing your request. Sorry about that!")


def _inputs(raw: object) -> list[str]:
    """Texts of an embedding's input; token numbers become words, so equal ones are equal."""
    items: list[Any] = raw if isinstance(raw, list) else [raw]
    if items and all(isinstance(item, int) for item in items):
        items = [items]
    if items and all(isinstance(item, list) and all(isinstance(t, int) for t in item) for item in items):
        items = [" ".join(map(str, item)) for item in items]
    return items if all(isinstance(item, str) for item in items) else []
