"""Values: what can be stored, how large it is, and its bytes. MessagePack, never pickle: reading runs no code."""

from functools import lru_cache
from sys import getsizeof
from typing import Any

import msgspec

from .reply import StoredReply

PLAIN, REPLY = 0, 1  # kinds of stored bytes
_ENCODE = msgspec.msgpack.Encoder().encode
decode_plain = msgspec.msgpack.Decoder().decode
_DECODE_REPLY = msgspec.msgpack.Decoder(StoredReply).decode
_TYPED_FACTOR = 4  # Python objects take about that many times their MessagePack bytes
_DEEPEST = 200
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def checked(value: Any, as_type: Any = None) -> tuple[Any, int]:
    """The value as every level gives it back, and the memory it takes, about.

    Without `as_type` it must be None, bool, int (64 bits), float, str, bytes or lists and dictionaries of them, and is
    returned itself. With it, whatever msgspec encodes and decodes as that type (structs, dataclasses, tuples, dates).

    Raises:
        TypeError: it would not come back as it is; the message names the type.
    """
    if type(value) is StoredReply:
        return value, value.size_bytes
    if as_type is None:
        return value, _size(value, 0)
    data = encode(value)
    try:
        return decoder_of(as_type)(data), _TYPED_FACTOR * len(data)
    except _UNREADABLE as error:
        msg = f"the answer is not what as_type={as_type!r} says: {error}"
        raise TypeError(msg) from error


def size_of(value: Any) -> int:
    """Memory a value that a level gave back takes, about."""
    try:
        return checked(value)[1]
    except TypeError:  # of a type the caller named
        return _TYPED_FACTOR * len(encode(value))


def _size(value: Any, depth: int) -> int:
    kind = type(value)
    if kind is str:
        if not value.isascii():
            _require_encodable(value)
        return getsizeof(value)
    if kind is int:
        if not -(1 << 63) <= value < 1 << 64:
            _refuse("an int beyond 64 bits")
        return 32
    if kind is float or kind is bool or value is None:
        return 24
    if kind is bytes:
        return getsizeof(value)
    if depth >= _DEEPEST:
        _refuse(f"a {kind.__name__} nested deeper than {_DEEPEST}")
    if kind is list:
        return getsizeof(value) + sum(_size(item, depth + 1) for item in value)
    if kind is dict:
        return getsizeof(value) + sum(_key_size(k) + _size(v, depth + 1) for k, v in value.items())
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    _refuse(f"a {name}")
    return 0


def _key_size(key: Any) -> int:
    if type(key) not in (str, int, bytes):
        _refuse(f"a dict with a key of type {type(key).__qualname__}")
    return _size(key, 0)


def _require_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse("a str with lone surrogates")


def _refuse(what: str) -> None:
    msg = f"cannot cache {what}: it would not come back as it is. Return plain values, or pass as_type=..."
    raise TypeError(msg)


def encode(value: Any) -> bytes:
    """The value as MessagePack. TypeError names a type that has none."""
    try:
        return _ENCODE(value)
    except (TypeError, OverflowError, UnicodeEncodeError, RecursionError) as error:
        msg = f"cannot cache a {type(value).__qualname__}: {error}"
        raise TypeError(msg) from error


def decode(kind: int, data: bytes | memoryview, as_type: Any = None) -> Any:
    """The value of stored bytes. msgspec.DecodeError or another of its errors: they are not that."""
    if kind == REPLY:
        return _DECODE_REPLY(data)
    return decode_plain(data) if as_type is None else decoder_of(as_type)(data)


def copy_of(value: Any, as_type: Any = None) -> Any:
    """An independent copy of a stored value."""
    return decode(kind_of(value), encode(value), as_type)


def kind_of(value: Any) -> int:
    """Which of the two kinds of stored bytes it becomes."""
    return REPLY if type(value) is StoredReply else PLAIN


@lru_cache(maxsize=512)
def decoder_of(as_type: Any) -> Any:
    """`decode` for one type."""
    return msgspec.msgpack.Decoder(as_type).decode
