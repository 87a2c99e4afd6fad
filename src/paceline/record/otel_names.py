"""OpenTelemetry's names and contexts in ours, and the other way round."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from paceline.model.span import (
    CACHE,
    DB,
    DB_COLLECTION,
    DB_OPERATION,
    DB_SYSTEM,
    EMBEDDING,
    HTTP_CLIENT,
    HTTP_METHOD,
    HTTP_SERVER,
    HTTP_STATUS,
    LLM,
    PROVIDER,
    QUEUE,
    STEP,
    TOOL,
    TTFT_S,
    URL,
)
from paceline.record.recorder import LiveSpan, LiveTrace, current

# Older and foreign attribute names -> the ones we store.
RENAMED = {
    "gen_ai.system": PROVIDER,
    "llm.provider": PROVIDER,
    "db.system": DB_SYSTEM,
    "db.operation": DB_OPERATION,
    "db.collection": DB_COLLECTION,
    "db.sql.table": DB_COLLECTION,
    "http.method": HTTP_METHOD,
    "http.status_code": HTTP_STATUS,
    "http.url": URL,
    "http.target": "url.path",
    "gen_ai.server.time_to_first_token": TTFT_S,
}
# Attributes that are fields of Span; the first one present counts.
FIELDS = {
    "model": ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name", "llm.request.model"),
    "input_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"),
    "output_tokens": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion"),
    "cached_tokens": ("gen_ai.usage.cache_read.input_tokens", "llm.token_count.prompt_details.cache_read"),
    "fingerprint": ("db.query.summary",),
}
# Prompts, answers, statements and headers are content: recorded only when asked, which nobody has.
_CONTENT = ("messages", "prompt", "completion", "content", "input.value", "output.value", "query.text", "db.statement")
MAX_TEXT = 200


def kind_of(otel_kind: str, attributes: Mapping[str, Any]) -> str:
    """Our kind for an OpenTelemetry span kind ("SERVER", "CLIENT", ...) with its attributes."""
    names = attributes.keys()
    operation = str(attributes.get("gen_ai.operation.name") or attributes.get("openinference.span.kind") or "").lower()
    if "embed" in operation:
        return EMBEDDING
    if operation == "execute_tool" or operation == "tool" or "mcp.method.name" in names:
        return TOOL
    if operation in ("chat", "text_completion", "generate_content", "llm") or "llm.request.type" in names:
        return LLM
    if operation:
        return STEP
    if "db.system" in names or "db.system.name" in names:
        system = attributes.get("db.system.name") or attributes.get("db.system")
        return CACHE if system in ("redis", "memcached", "valkey") else DB
    if "messaging.system" in names:
        return QUEUE
    if any(name.startswith("http.") for name in names):
        return HTTP_SERVER if otel_kind == "SERVER" else HTTP_CLIENT if otel_kind == "CLIENT" else STEP
    return HTTP_SERVER if otel_kind == "SERVER" else STEP


def mapped(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields of Span, attributes) for OpenTelemetry attributes of any age; content is left out."""
    fields = {}
    for field, names in FIELDS.items():
        value = next((attributes[name] for name in names if attributes.get(name) is not None), None)
        if value is not None:
            fields[field] = int(value) if field.endswith("_tokens") else str(value)
    known = {name for names in FIELDS.values() for name in names}
    kept = {
        RENAMED.get(name, name): _plain(value)
        for name, value in attributes.items()
        if name not in known and not any(part in name for part in _CONTENT)
    }
    if URL in kept:
        kept[URL] = str(kept[URL]).partition("?")[0]
    return fields, kept


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [str(item)[:MAX_TEXT] for item in value][:50]
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:MAX_TEXT]


def live_span_in(context: Any) -> LiveSpan | None:
    """Our span for the span in an OpenTelemetry context: its own, or a stand-in for one of the service's SDK."""
    from opentelemetry import trace

    span = trace.get_current_span(context)
    live = getattr(span, "paceline_span", None)
    if live is not None:
        return live  # type: ignore[no-any-return]
    ids = span.get_span_context()
    if not ids.is_valid:
        return None
    above = current.get()
    if above is not None and above.span_id == ids.span_id:
        return above
    known = above.trace if above is not None and above.trace.id == ids.trace_id else LiveTrace(ids.trace_id)
    return LiveSpan(known, ids.span_id, None, STEP, "")


def context_of(span: LiveSpan) -> Any:
    """The OpenTelemetry SpanContext of one of our spans."""
    from opentelemetry import trace

    return trace.SpanContext(span.trace.id, span.span_id, False, trace.TraceFlags(1))
