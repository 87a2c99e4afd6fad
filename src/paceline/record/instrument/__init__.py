"""What is recorded of which library. One file a library, one line here; applied when the service imports the module."""

from collections.abc import Callable
from functools import partial
from types import ModuleType

from paceline.record import otel
from paceline.record.hooks import Patch
from paceline.record.instrument import aiohttp_client, asgi, chroma, httpx_client, openai_sdk, redis_client, threads
from paceline.record.instrument import urllib3_client as urllib3
from paceline.record.recorder import Recorder

_TABLE: dict[str, Callable[[Recorder, ModuleType], None]] = {
    "starlette.applications": asgi.instrument,
    "httpx": httpx_client.instrument,
    "httpx2": httpx_client.instrument,
    "urllib3.connectionpool": urllib3.instrument,
    "aiohttp.client": aiohttp_client.instrument,
    "openai._base_client": openai_sdk.instrument,
    "openai.resources.chat.completions.completions": openai_sdk.instrument_resource,
    "openai.resources.responses.responses": openai_sdk.instrument_resource,
    "openai.resources.embeddings": openai_sdk.instrument_resource,
    "chromadb.api.client": chroma.instrument_client,
    "chromadb.api.async_client": chroma.instrument_client,
    "chromadb.api.models.Collection": chroma.instrument_collection,
    "chromadb.api.models.AsyncCollection": chroma.instrument_collection,
    "redis.client": redis_client.instrument,
    "redis.asyncio.client": redis_client.instrument,
    "opentelemetry.context": otel.instrument_context,
    "opentelemetry.trace": otel.instrument_trace,
}

__all__ = ["patches", "threads"]


def patches(recorder: Recorder) -> dict[str, Patch]:
    """The table, bound to a recorder, for the import hook."""
    return {name: partial(patch, recorder) for name, patch in _TABLE.items()}
