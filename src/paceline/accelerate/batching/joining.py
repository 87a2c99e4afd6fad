"""Several embedding calls in one body, and its answer taken apart again. Pure.

Inputs, vectors and every field not known here go through as the bytes they came in: no number is read and written
again. What can differ from the answer a call would have had alone is white space, and the usage: the provider counts
the batch as a whole, which is divided by the calls' shares of estimated tokens, so that the sum is the provider's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from paceline.wire.http import Headers, HttpRequest
from paceline.wire.tokens import BYTES_PER_TOKEN

_OPENAI, _SINGLE, _MANY = "/embeddings", ":embedContent", ":batchEmbedContents"
# Say nothing about what is asked. A header not named here keeps calls apart when it differs.
_IDLE = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"connection",
        b"content-length",
        b"host",
        b"idempotency-key",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"x-client-request-id",
        b"x-goog-api-client",
        b"x-request-id",
    }
)
_IDLE_PREFIX = b"x-stainless-"
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raws = msgspec.json.Decoder(list[msgspec.Raw])
_items = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_Item = dict[str, msgspec.Raw]


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """One call that others may join. Calls with equal `key` can share a request."""

    key: tuple[object, ...]
    target: str  # of the joined call
    field: str  # of the joined body that holds the inputs
    fields: dict[str, bytes]  # of the body, besides the inputs
    inputs: list[bytes]
    tokens: int  # estimated
    lone: bool  # Gemini's form for a single input


def read_embedding(request: HttpRequest) -> EmbeddingCall | None:
    """The call in a request, or None when it is none that can be joined with others. Costs about 5 us for 1 KB."""
    if request.method != "POST":
        return None
    path, mark, query = request.target.partition("?")
    try:
        if path.endswith(_OPENAI):
            return _read_openai(request)
        if path.endswith((_SINGLE, _MANY)):
            return _read_gemini(request, path, mark + query)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # not for us to refuse
    return None


def join(calls: Sequence[EmbeddingCall]) -> bytes:
    """The body of one request for all inputs of calls with equal keys, in order."""
    first = calls[0]
    inputs = b"[" + b",".join([one for call in calls for one in call.inputs]) + b"]"
    return _object({**first.fields, first.field: inputs})


def split(calls: Sequence[EmbeddingCall], body: bytes) -> list[bytes]:
    """The answer each call would have got alone. ValueError: it is not an answer to these calls."""
    inputs = sum(len(call.inputs) for call in calls)
    try:
        fields = _fields.decode(body)
        gemini = "embeddings" in fields
        vectors = [bytes(raw) for raw in _raws.decode(fields.pop("embeddings"))] if gemini else []
        items = _in_order(_items.decode(fields.pop("data"))) if not gemini else []
    except (KeyError, UnicodeDecodeError) as error:
        msg = "not the answer to an embeddings call"
        raise ValueError(msg) from error
    if len(vectors) + len(items) != inputs:
        msg = f"asked for {inputs} embeddings, got {len(vectors) + len(items)}"
        raise ValueError(msg)
    usage_name = "usageMetadata" if gemini else "usage"
    usage = fields.get(usage_name)
    shares = divided(msgspec.json.decode(usage), [call.tokens for call in calls]) if usage is not None else []
    answers = []
    at = 0
    for i, call in enumerate(calls):
        part = slice(at, at + len(call.inputs))
        at = part.stop
        rest = {name: bytes(raw) for name, raw in fields.items()}
        if shares:
            rest[usage_name] = msgspec.json.encode(shares[i])
        answers.append(
            _gemini_answer(vectors[part], rest, lone=call.lone) if gemini else _openai_answer(items[part], rest)
        )
    return answers


def divided(usage: Any, weights: Sequence[int]) -> list[Any]:
    """A usage for each weight, whose numbers sum to the numbers of `usage`, at any depth."""
    if isinstance(usage, bool) or not isinstance(usage, int | dict | list):
        return [usage] * len(weights)
    if isinstance(usage, int):
        return list(apportioned(usage, weights))
    if isinstance(usage, list):
        columns = [divided(item, weights) for item in usage]
        return [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in weights]
    parts = {name: divided(value, weights) for name, value in usage.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(len(weights))]


def apportioned(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to the weights whose sum is `total`: Hamilton's method, ties to the first."""
    whole = sum(weights)
    if whole <= 0:
        weights, whole = [1] * len(weights), len(weights)
    shares = [total * weight // whole for weight in weights]
    left = total - sum(shares)
    by_rest = sorted(range(len(weights)), key=lambda i: -(total * weights[i] % whole))
    for i in by_rest[:left]:
        shares[i] += 1
    return shares


def joined_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers of the one request: the first caller's, without those that speak of its own body or trace."""
    kept = [header for header in headers if header[0] not in _IDLE or header[0] in (b"accept", b"user-agent", b"host")]
    return [*kept, (b"accept-encoding", b"identity")]


def _read_openai(request: HttpRequest) -> EmbeddingCall | None:
    fields = {name: bytes(raw) for name, raw in _fields.decode(request.body).items()}
    value = fields.pop("input", b"")
    if value[:1] == b'"':
        inputs, form = [value], b'"'
    else:
        inputs = [bytes(raw) for raw in _raws.decode(value)]
        forms = {one[:1] if one[:1] in (b'"', b"[") else b"0" for one in inputs}
        if len(forms) != 1:  # none at all, or texts and tokens mixed: the provider shall say what it thinks of it
            return None
        form = forms.pop()
        if form == b"0":  # numbers: one input as tokens
            inputs, form = [value], b"["
    tokens = sum(_tokens(one) for one in inputs)
    key = ("openai", request.target, form, tuple(sorted(fields.items())), _asking(request.headers))
    return EmbeddingCall(key, request.target, "input", fields, inputs, tokens, lone=False)


def _read_gemini(request: HttpRequest, path: str, query: str) -> EmbeddingCall | None:
    fields = {name: bytes(raw) for name, raw in _fields.decode(request.body).items()}
    resource, _, method = path.rpartition(":")
    lone = method == _SINGLE[1:]
    if lone:
        fields.setdefault("model", msgspec.json.encode("/".join(resource.split("/")[-2:])))
        inputs, fields = [_object(fields)], {}
    else:
        inputs = [bytes(raw) for raw in _raws.decode(fields.pop("requests", b"[]"))]
    if not inputs:
        return None
    target = resource + _MANY + query
    key = ("gemini", target, tuple(sorted(fields.items())), _asking(request.headers))
    return EmbeddingCall(key, target, "requests", fields, inputs, sum(_tokens(one) for one in inputs), lone)


def _asking(headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
    """Headers that keep calls apart, credentials among them."""
    return tuple(sorted(h for h in headers if h[0] not in _IDLE and not h[0].startswith(_IDLE_PREFIX)))


def _tokens(one: bytes) -> int:
    """Of one input: tokens counted, text estimated."""
    return one.count(b",") + 1 if one[:1] == b"[" else -(-len(one) // BYTES_PER_TOKEN)


def _in_order(items: list[_Item]) -> list[_Item]:
    """Items of `data` by their index. ValueError when indices are missing or doubled."""
    placed = {int(bytes(item["index"])): item for item in items}
    if sorted(placed) != list(range(len(items))):
        msg = f"embeddings are numbered {sorted(placed)[:5]}..., not 0 to {len(items) - 1}"
        raise ValueError(msg)
    return [placed[i] for i in range(len(items))]


def _openai_answer(items: list[_Item], rest: dict[str, bytes]) -> bytes:
    data = [
        _object({name: b"%d" % i if name == "index" else bytes(raw) for name, raw in item.items()})
        for i, item in enumerate(items)
    ]
    head = {"object": rest["object"]} if "object" in rest else {}  # OpenAI writes it before the data
    return _object({**head, "data": b"[" + b",".join(data) + b"]", **rest})


def _gemini_answer(vectors: list[bytes], rest: dict[str, bytes], *, lone: bool) -> bytes:
    if lone:
        return _object({"embedding": vectors[0], **rest})
    return _object({"embeddings": b"[" + b",".join(vectors) + b"]", **rest})


def _object(fields: dict[str, bytes]) -> bytes:
    return b"{" + b",".join([msgspec.json.encode(name) + b":" + value for name, value in fields.items()]) + b"}"
