"""Which dialect a request speaks."""

from collections.abc import Iterable
from functools import lru_cache

from paceline.wire.call import Dialect
from paceline.wire.openai import OPENAI

DIALECTS: tuple[Dialect, ...] = (OPENAI,)


@lru_cache(maxsize=1024)
def dialect_of(path: str) -> tuple[Dialect, str] | None:
    """The dialect of a POST to this path (without query) and the kind of call; None: not a model call."""
    for dialect in DIALECTS:
        kind = dialect.kind_of(path)
        if kind is not None:
            return dialect, kind
    return None


def dialect_for(path: str, headers: Iterable[tuple[bytes, bytes]]) -> Dialect:
    """The best guess for any path: which provider it is for, how its errors are worded. Names are lower case."""
    found = dialect_of(path)
    return found[0] if found is not None else OPENAI
