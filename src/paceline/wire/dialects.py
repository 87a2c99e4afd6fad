"""Which dialect a request speaks."""

from collections.abc import Iterable
from functools import lru_cache

from paceline.wire.anthropic import ANTHROPIC
from paceline.wire.call import Dialect
from paceline.wire.gemini import GEMINI
from paceline.wire.openai import OPENAI

DIALECTS: tuple[Dialect, ...] = (OPENAI, ANTHROPIC, GEMINI)


@lru_cache(maxsize=1024)
def dialect_of(path: str) -> tuple[Dialect, str] | None:
    """The dialect of a POST to this path (without query) and the kind of call; None: not a model call."""
    for dialect in DIALECTS:
        kind = dialect.kind_of(path)
        if kind is not None:
            return dialect, kind
    return None


def dialect_for(path: str, headers: Iterable[tuple[bytes, bytes]]) -> Dialect:
    """The best guess for any path: which provider it is for, how its errors are worded. Names are lower case.

    By the path where it is a model call's, else by the header only one provider's clients send, else OpenAI's.
    """
    found = dialect_of(path)
    if found is not None:
        return found[0]
    for name, _ in headers:
        dialect = _HEADERS.get(name)
        if dialect is not None:
            return dialect
    return GEMINI if "/v1beta/" in path or "/publishers/google/" in path else OPENAI


_HEADERS: dict[bytes, Dialect] = {
    b"anthropic-version": ANTHROPIC,
    b"x-api-key": ANTHROPIC,
    b"x-goog-api-key": GEMINI,
    b"x-goog-api-client": GEMINI,
}
_KEY_PARAMETERS = frozenset({"key", "access_token"})  # how Google takes credentials in a query

CREDENTIAL_HEADERS = frozenset().union(*(dialect.credential_headers for dialect in DIALECTS))
KEY_HEADERS = frozenset().union(*(dialect.key_headers for dialect in DIALECTS))


def without_credentials(target: str) -> tuple[str, str]:
    """The target without credentials in its query, and those: they say whose call it is, not what is asked."""
    path, mark, query = target.partition("?")
    if not mark or ("key=" not in query and "access_token=" not in query):
        return target, ""
    parts = query.split("&")
    secret = [part for part in parts if part.partition("=")[0] in _KEY_PARAMETERS]
    kept = [part for part in parts if part.partition("=")[0] not in _KEY_PARAMETERS]
    return path + ("?" + "&".join(kept) if kept else ""), "&".join(secret)
