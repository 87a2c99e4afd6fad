"""ChromaDB: a db span for each collection look-up, query and write, sync and async."""

from types import ModuleType
from typing import Any

from paceline.model.span import DB, DB_COLLECTION, DB_OPERATION, DB_RESULTS, DB_SYSTEM, USES
from paceline.record.flow import vector_excerpt
from paceline.record.instrument.wrapping import argument, wrap
from paceline.record.recorder import LiveSpan, Recorder

_COLLECTION_METHODS = ("query", "get", "add", "upsert", "update", "delete", "count", "peek")
_CLIENT_METHODS = ("get_collection", "get_or_create_collection", "create_collection", "delete_collection")
_MAX_DOCUMENTS = 20  # of a result that are remembered for data flow


def instrument_collection(recorder: Recorder, module: ModuleType) -> None:
    """Patch Collection or AsyncCollection."""
    owner: Any = getattr(module, module.__name__.rpartition(".")[2])
    for name in _COLLECTION_METHODS:

        def begin(collection: Any, args: Any, kwargs: Any, operation: str = name) -> LiveSpan:
            span = _begin(recorder, operation, collection.name, is_async=owner.__name__ == "AsyncCollection")
            if operation == "query":
                _note_uses(span, args, kwargs)
            return span

        wrap(recorder, owner, name, begin, _end)


def instrument_client(recorder: Recorder, module: ModuleType) -> None:
    """Patch Client or AsyncClient."""
    owner: Any = getattr(module, "AsyncClient", None) or module.Client
    is_async = owner.__name__ == "AsyncClient"
    for name in _CLIENT_METHODS:

        def begin(_: Any, args: Any, kwargs: Any, operation: str = name) -> LiveSpan:
            return _begin(recorder, operation, argument(args, kwargs, 0, "name"), is_async=is_async)

        wrap(recorder, owner, name, begin)


def _begin(recorder: Recorder, operation: str, collection: Any, *, is_async: bool) -> LiveSpan:
    span = recorder.start(DB, f"{operation} {collection}", callers=True, cpu=not is_async)
    span.attributes.update({DB_SYSTEM: "chroma", DB_OPERATION: operation, DB_COLLECTION: str(collection)})
    span.fields["fingerprint"] = f"chroma {operation} {collection}"
    return span


def _note_uses(span: LiveSpan, args: Any, kwargs: Any) -> None:
    """Earlier calls whose output this query is made from."""
    vectors, texts = argument(args, kwargs, 0, "query_embeddings"), argument(args, kwargs, 1, "query_texts")
    parts: list[str] = []
    if texts is not None:
        parts += [texts] if isinstance(texts, str) else [str(t) for t in texts]
    if vectors is not None and len(vectors):
        rows = vectors if hasattr(vectors[0], "__len__") else [vectors]
        parts += [vector_excerpt(row) for row in rows]
    used = span.trace.flow.uses("\n".join(parts))
    if used:
        span.attributes[USES] = used


def _end(span: LiveSpan, result: Any) -> None:
    if isinstance(result, int):
        span.attributes[DB_RESULTS] = result
    elif isinstance(result, dict) and result.get("ids") is not None:
        rows = _flat(result["ids"])
        span.attributes[DB_RESULTS] = len(rows)
        documents = [d for d in _flat(result.get("documents") or []) if isinstance(d, str)]
        span.trace.flow.remember(span.hex_id, documents[:_MAX_DOCUMENTS])


def _flat(rows: list[Any]) -> list[Any]:
    return [item for row in rows for item in row] if rows and isinstance(rows[0], list) else rows
