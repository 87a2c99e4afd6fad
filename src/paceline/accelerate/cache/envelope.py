"""Envelope: a stored value's bytes on host and fleet, with what is needed to judge it: age, check sum, tags.

    magic  2  "P1"
    crc32  4  of everything after this field
    flags  1  kind of value, compressed, encrypted
    tags   1  how many
    key    8  the end of the key
    created_at 8, ttl_s 8 (0: the level's own), compute_s 4
    tag ids    16 each
    payload       MessagePack; compressed, then encrypted, where the policy says so

An envelope opens only under the key it was made for. What does not open, for whatever reason, is a miss.
"""

import os
import struct
import zlib
from typing import Any

import msgspec

from paceline.errors import ConfigError

from .values import PLAIN, decode, decode_plain, encode, kind_of

_MAGIC = b"P1"
_START = struct.Struct("<2sI")
_KEY_BYTES = 8
_REST = struct.Struct("<BB8sddf")
_WHOLE = struct.Struct("<2sIBB8sddf")
_WHOLE_AT, _WHOLE_BYTES, _START_BYTES = _WHOLE.unpack_from, _WHOLE.size, _START.size
_crc32 = zlib.crc32
_KIND, _COMPRESSED, _ENCRYPTED = 0x0F, 0x10, 0x20
TAG_BYTES = 16
MOST_TAGS = 64
_NONCE_BYTES = 12
_COPIED_BYTES = 4_096  # up to there copying a slice is cheaper than a view of it
_LARGEST_BYTES = 1 << 30  # of a decompressed value: a small entry must not become a huge one


class Opened(msgspec.Struct, frozen=True, gc=False):
    """What an envelope held."""

    value: Any
    created_s: float  # Unix seconds
    ttl_s: float  # 0: the level's own
    compute_s: float  # what computing it took
    joined_tags: bytes = b""  # their ids, one after the other

    @property
    def tags(self) -> tuple[bytes, ...]:
        """The ids of its tags."""
        return split_tags(self.joined_tags)


class Sealer:
    """Makes and opens envelopes by one policy.

    Args:
        compress_min_bytes: Compress payloads from this size on; None: never.
        key: 32 bytes for AES-256-GCM; None: not encrypted.
    """

    def __init__(self, *, compress_min_bytes: int | None = None, key: bytes | None = None) -> None:
        self._compress_min_bytes = compress_min_bytes
        self._cipher = _cipher(key) if key is not None else None
        self._encrypts = key is not None
        self._refusals: tuple[type[Exception], ...] = (
            struct.error,
            zlib.error,
            ValueError,  # msgspec's and UnicodeDecodeError are some
            RecursionError,
            MemoryError,
            *(_refusals() if key is not None else ()),
        )

    def seal(
        self,
        key: bytes,
        value: Any,
        *,
        created_s: float,
        ttl_s: float | None,
        compute_s: float,
        tags: tuple[bytes, ...],
    ) -> bytes:
        """The envelope of one value. TypeError: it cannot be encoded."""
        payload = encode(value)
        flags = kind_of(value)
        if self._compress_min_bytes is not None and len(payload) >= self._compress_min_bytes:
            smaller = zlib.compress(payload, 1)
            if len(smaller) < len(payload):
                payload, flags = smaller, flags | _COMPRESSED
        if self._cipher is not None:
            flags |= _ENCRYPTED
        head = _REST.pack(flags, len(tags), key[-_KEY_BYTES:], created_s, ttl_s or 0.0, compute_s) + b"".join(tags)
        if self._cipher is not None:
            nonce = os.urandom(_NONCE_BYTES)
            payload = nonce + self._cipher.encrypt(nonce, payload, key + head)
        body = head + payload
        return _START.pack(_MAGIC, zlib.crc32(body)) + body

    def open(self, key: bytes, data: bytes, as_type: Any = None, offset: int = 0) -> Opened | None:
        """What the envelope at `offset` holds; None when it is damaged, of another key, or sealed with another secret.

        About 1.5 us for 1 kB.
        """
        try:
            magic, crc, flags, tag_count, end, created_s, ttl_s, compute_s = _WHOLE_AT(data, offset)
            view: bytes | memoryview = data if len(data) < _COPIED_BYTES else memoryview(data)
            if magic != _MAGIC or end != key[-_KEY_BYTES:] or _crc32(view[offset + _START_BYTES :]) != crc:
                return None
            start = offset + _WHOLE_BYTES
            tags = b""
            if tag_count:
                tags = data[start : start + TAG_BYTES * tag_count]
                start += TAG_BYTES * tag_count
            if flags == PLAIN and as_type is None and not self._encrypts:
                return Opened(decode_plain(view[start:]), created_s, ttl_s, compute_s, tags)
            if flags > _KIND or self._encrypts:
                payload: bytes | memoryview = self._uncovered(key, flags, data[offset:], start - offset)
            else:
                payload = view[start:]
            return Opened(decode(flags & _KIND, payload, as_type), created_s, ttl_s, compute_s, tags)
        except self._refusals:
            return None

    def _uncovered(self, key: bytes, flags: int, data: bytes, start: int) -> memoryview:
        payload = data[start:]
        if bool(flags & _ENCRYPTED) != (self._cipher is not None):
            msg = "encrypted here and not there"  # a plain entry is not trusted where encryption is asked for
            raise ValueError(msg)
        if self._cipher is not None:
            signed = key + data[_START.size : start]
            payload = self._cipher.decrypt(payload[:_NONCE_BYTES], payload[_NONCE_BYTES:], signed)
        if flags & _COMPRESSED:
            unpacker = zlib.decompressobj()
            payload = unpacker.decompress(payload, _LARGEST_BYTES)
            if not unpacker.eof:
                msg = "cut, or too large"
                raise ValueError(msg)
        return memoryview(payload)


def tags_in(data: bytes, offset: int = 0) -> tuple[bytes, ...]:
    """The tag ids of an envelope that starts at `offset`."""
    start = offset + _WHOLE_BYTES
    return split_tags(data[start : start + TAG_BYTES * data[offset + _START_BYTES + 1]])


def split_tags(joined: bytes) -> tuple[bytes, ...]:
    """Tag ids that stand one after the other."""
    return tuple(joined[at : at + TAG_BYTES] for at in range(0, len(joined), TAG_BYTES))


def secret_from(variable: str | None) -> bytes | None:
    """The key of AES-256-GCM that an environment variable holds; None for None.

    Raises:
        ConfigError: it is not set, or not 64 hexadecimal digits.
    """
    if variable is None:
        return None
    text = os.environ.get(variable, "")
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != 32:
        seen = "it is not set" if not text else "it holds something else"
        msg = (
            f"{variable} must hold 64 hexadecimal digits, the key with which the cache is encrypted; {seen}. "
            "Make one: python -c 'import secrets; print(secrets.token_hex(32))'"
        )
        raise ConfigError(msg)
    return secret


def _cipher(key: bytes) -> Any:
    try:  # optional
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        msg = "an encrypted cache needs the cryptography package: pip install 'paceline[encrypt]'"
        raise ConfigError(msg) from error
    return AESGCM(key)


def _refusals() -> tuple[type[Exception], ...]:
    from cryptography.exceptions import InvalidTag

    return (InvalidTag,)
