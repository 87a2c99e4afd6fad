"""redis: one cache span a command or pipeline, sync and async. Keys are kept as patterns, values not at all."""

import re
from types import ModuleType
from typing import Any

from paceline.model.span import CACHE, DB_OPERATION, DB_SYSTEM
from paceline.record.instrument.wrapping import wrap
from paceline.record.recorder import LiveSpan, Recorder

_VARIES = re.compile(r"[0-9a-fA-F]{8,}(?:-[0-9a-fA-F]{4,})*|\d+")
_READS = frozenset(("GET", "HGET", "GETEX", "JSON.GET"))


def instrument(recorder: Recorder, module: ModuleType) -> None:
    """Patch Redis.execute_command and Pipeline.execute."""
    cpu = module.__name__ == "redis.client"

    def begin_command(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LiveSpan:
        command = str(args[0]).upper()
        span = recorder.start(CACHE, command, callers=True, cpu=cpu)
        span.attributes.update({DB_SYSTEM: "redis", DB_OPERATION: command})
        if len(args) > 1:
            span.fields["fingerprint"] = f"{command} {key_pattern(args[1])}"
        return span

    def end_command(span: LiveSpan, result: Any) -> None:
        if span.name in _READS:
            span.fields["cache"] = "miss" if result is None else "hit"

    def begin_pipeline(pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LiveSpan | None:
        stack = pipeline.command_stack
        if not stack:
            return None
        span = recorder.start(CACHE, "PIPELINE", callers=True, cpu=cpu)
        span.attributes.update({DB_SYSTEM: "redis", DB_OPERATION: "PIPELINE", "db.operation.batch.size": len(stack)})
        return span

    wrap(recorder, module.Redis, "execute_command", begin_command, end_command)
    wrap(recorder, module.Pipeline, "execute", begin_pipeline)


def key_pattern(key: Any) -> str:
    """A key with its numbers and long hex runs replaced: `user:42:profile` -> `user:*:profile`."""
    text = key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
    return _VARIES.sub("*", text[:200])
