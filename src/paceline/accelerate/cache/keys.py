"""Keys: how a tenant and what it asks become the name under which an answer is stored.

A storage key is 12 bytes that stand for the tenant and 20 that stand for tenant and question. No level sees any other
name, so no tenant can reach another's answers whatever its keys look like.
"""

import re
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec

Key = Any  # str, bytes, a number, or a tuple of such: anything `name_of` accepts
KEY_BYTES = 32
PARTITION_BYTES = 12
_ENCODE = msgspec.msgpack.Encoder(order="deterministic").encode  # sets and dictionaries in one order everywhere
_FLAT = frozenset({str, bytes, int, float, bool, type(None)})
_PLAIN = re.compile(r"[^:/|.\s]*\d[^:/|.\s]*")
_LONGEST_PATTERN = 64


def name_of(key: Key) -> object:
    """The key as a dictionary key in this process: equal exactly where the storage keys are.

    Strings and bytes stand for themselves. Everything else becomes a 1-tuple of its encoding, because in Python
    `(1,) == (True,) == (1.0,)`, and they are different questions.

    Raises:
        TypeError: the key holds a type that has no encoding; the message names it.
    """
    kind = type(key)
    if kind is str or kind is bytes:
        return key
    if kind is tuple:
        for part in key:
            if type(part) not in _FLAT:
                key = _marked(key)
                break
        return (_encoded(key),)
    return (_encoded(key if kind in _FLAT else _marked(key)),)


def storage_key(tenant: str | bytes | None, key: Key) -> bytes:
    """The 32 bytes under which every level stores `key` of `tenant`. About 2 us.

    Args:
        tenant: Whose it is. None is a partition of its own, which no named tenant can reach.
        key: See `name_of`.
    """
    return named_key(partition_of(tenant), name_of(key))


def named_key(partition: bytes, name: object) -> bytes:
    """`storage_key` of a name that `name_of` gave."""
    if type(name) is str:
        body = b"s" + name.encode("utf-8", "surrogatepass")
    elif type(name) is bytes:
        body = b"b" + name
    else:
        body = b"t" + name[0]  # type: ignore[index]
    return partition + blake2b(partition + body, digest_size=KEY_BYTES - PARTITION_BYTES).digest()


@lru_cache(maxsize=4096)
def partition_of(tenant: str | bytes | None) -> bytes:
    """The 12 bytes with which every storage key of a tenant begins."""
    if tenant is None:
        body = b"own"
    elif isinstance(tenant, str):
        body = b"s" + tenant.encode("utf-8", "surrogatepass")
    elif isinstance(tenant, bytes):
        body = b"b" + tenant
    else:
        msg = f"a tenant is a str or bytes; got {type(tenant).__name__}"
        raise TypeError(msg)
    return blake2b(body, digest_size=PARTITION_BYTES, person=b"paceline-tenant").digest()


@lru_cache(maxsize=16_384)
def tag_id(tag: str) -> bytes:
    """The 16 bytes that stand for a tag in every level."""
    if not isinstance(tag, str):
        msg = f"a tag is a str; got {type(tag).__name__}"
        raise TypeError(msg)
    return blake2b(tag.encode("utf-8", "surrogatepass"), digest_size=16, person=b"paceline-tag").digest()


def pattern_of(key: Key) -> str:
    """The family a key belongs to, for statistics: `user:1234:profile` is `user:*:profile`, a tuple its first part."""
    if isinstance(key, tuple) and key and isinstance(key[0], str):
        return f"({pattern_of(key[0])}, ...)"
    if not isinstance(key, str):
        return f"({type(key).__name__})"
    return _PLAIN.sub("*", key[: 2 * _LONGEST_PATTERN])[:_LONGEST_PATTERN]


def _encoded(key: object) -> bytes:
    try:
        return _ENCODE(key)
    except (TypeError, OverflowError, UnicodeEncodeError, RecursionError) as error:
        msg = f"a cache key must be made of plain values; {error}"
        raise TypeError(msg) from error


def _marked(part: Any) -> Any:
    """The same with each type that another one would be encoded like (list and tuple, UUID and str) told apart."""
    kind = type(part)
    if kind in _FLAT:
        return part
    if kind is tuple:
        return ["tuple", *(_marked(item) for item in part)]
    if kind is list:
        return ["list", *(_marked(item) for item in part)]
    if kind is dict:
        return ["dict", *sorted(((_marked(k), _marked(v)) for k, v in part.items()), key=_ENCODE)]
    if kind in (set, frozenset):
        return ["set", *sorted((_marked(item) for item in part), key=_ENCODE)]
    return [f"{kind.__module__}.{kind.__qualname__}", part]
