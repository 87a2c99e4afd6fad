"""Gateway keys: what a key may do, how it is made, and the file that keeps them without the keys themselves.

A key is 256 random bits, so the file holds one salted SHA-256 of it and no slow hash: slow hashes make guessing
expensive where people choose the secret, and nobody guesses 2**256 values at any price. They would only hand whoever
sends wrong keys a way to burn the gateway's CPU.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from paceline.errors import ConfigError

CALLS, MONITOR, OPERATOR = "calls", "monitor", "operator"
PREFIX = "pl_"
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_ID_HEX = 8
_SECRET_BYTES = 32
_HEAD = "# Keys of the gateway, written by `paceline keys`. It holds hashes: a lost key cannot be read from here.\n"


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """One gateway key as the file keeps it, with what it may do. None: no bound."""

    name: str  # for metrics, logs and cost tables
    id: str  # public part of the key
    salt: str  # hex
    hash: str  # hex of SHA-256 over salt and key
    tenant: str | None = None  # whose cache, queue and cost it shares; None: its own, by its name
    role: str = CALLS  # "monitor": reads the gateway's pages, makes no calls; "operator": drops kept answers, too
    requests_per_min: float | None = None
    tokens_per_min: float | None = None  # in and out, as the provider counted them
    budget_usd_per_day: float | None = None  # days and months of UTC
    budget_usd_per_month: float | None = None
    models: list[str] = []  # "gpt-4o", "claude-*"; empty: every model
    other_paths: bool = False  # also what is no model call: files, batches, fine-tuning
    priority: int = 0  # in queues; higher goes first
    created: str = ""  # date

    def __post_init__(self) -> None:
        for field in ("name", "tenant"):
            value = getattr(self, field)
            if value is not None and not _NAME.fullmatch(value):
                msg = f"{field} must be 1 to 64 letters, digits or _ . @ -; got {value!r}"
                raise ValueError(msg)
        if self.role not in (CALLS, MONITOR, OPERATOR):
            msg = f"role must be {CALLS}, {MONITOR} or {OPERATOR}; got {self.role!r}"
            raise ValueError(msg)
        if not re.fullmatch(r"[0-9a-f]{64}", self.hash) or not re.fullmatch(r"[0-9a-f]{16,}", self.salt):
            msg = "hash and salt must be as `paceline keys add` wrote them"
            raise ValueError(msg)
        for field in ("requests_per_min", "tokens_per_min", "budget_usd_per_day", "budget_usd_per_month"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                msg = f"{field} must be above 0; got {value:g}"
                raise ValueError(msg)

    @property
    def owner(self) -> str:
        """The tenant it belongs to."""
        return self.tenant or self.name

    @property
    def has_budget(self) -> bool:
        """True when what it may spend is bounded."""
        return self.budget_usd_per_day is not None or self.budget_usd_per_month is not None

    def allows(self, model: str) -> bool:
        """Whether it may call `model`."""
        return not self.models or any(
            model.startswith(name[:-1]) if name.endswith("*") else model == name for name in self.models
        )

    def matches(self, presented: str) -> bool:
        """Whether `presented` is this key, in a time that does not depend on where it differs."""
        return hmac.compare_digest(_hash(self.salt, presented), self.hash)

    def __repr__(self) -> str:
        return f"Key(name={self.name!r}, id={self.id!r})"


class _KeysFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    keys: list[Key] = []


def new_key(name: str, **may: object) -> tuple[str, Key]:
    """A fresh key to give out, and what the file keeps of it; `may`: fields of Key. ValueError: one is wrong."""
    key_id, salt = secrets.token_hex(_ID_HEX // 2), secrets.token_hex(16)
    presented = f"{PREFIX}{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    fields = {"name": name, "id": key_id, "salt": salt, "hash": _hash(salt, presented), **may}
    return presented, msgspec.convert(fields, Key)


def id_of(presented: str) -> str | None:
    """The public part of a presented key; None when it is none of ours."""
    if not presented.startswith(PREFIX):
        return None
    key_id, separator, _ = presented[len(PREFIX) :].partition("_")
    return key_id if separator and len(key_id) == _ID_HEX else None


def read_keys(path: Path) -> list[Key]:
    """The keys in a file. ConfigError names the file and the field."""
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"cannot read the keys {path}: {error.strerror}"
        raise ConfigError(msg) from error
    try:
        keys = msgspec.toml.decode(data, type=_KeysFile).keys
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"the keys {path} are wrong: {error}"
        raise ConfigError(msg) from error
    check_distinct(keys, str(path))
    return keys


def check_distinct(keys: Sequence[Key], where: str) -> None:
    """Refuse two keys of one name or id. ConfigError names them."""
    for field in ("name", "id"):
        seen: set[str] = set()
        for key in keys:
            value = getattr(key, field)
            if value in seen:
                msg = f"{where}: two keys have the {field} {value!r}; give each its own"
                raise ConfigError(msg)
            seen.add(value)


def add_key(path: Path, key: Key) -> None:
    """Append a key to the file, readable by its owner only; what stands there is left as it is.

    ConfigError: the file is wrong or cannot be written, or the name is taken.
    """
    text = _HEAD
    if path.exists():
        check_distinct([*read_keys(path), key], str(path))
        text = path.read_text(encoding="utf-8")
        text += "" if text.endswith("\n") else "\n"
    write_whole(path, text + "\n" + _as_toml(key), "the keys")


def revoke_key(path: Path, name: str) -> None:
    """Take the key of that name out of the file. ConfigError: there is none, or the file cannot be written."""
    keys = read_keys(path)
    if name not in [key.name for key in keys]:
        msg = f"{path} has no key {name!r}; it has {', '.join(key.name for key in keys) or 'none'}"
        raise ConfigError(msg)
    blocks = re.split(r"(?m)^(?=\[\[keys\]\])", path.read_text(encoding="utf-8"))
    kept = [block for block in blocks if not _is_key(block, name)]
    write_whole(path, "".join(kept), "the keys")


def write_whole(path: Path, text: str, what: str) -> None:
    """Replace a file at once, readable by its owner only: readers see the old text or the new. Raises ConfigError."""
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        msg = f"cannot write {what} {path}: {error.strerror or error}"
        raise ConfigError(msg) from error


def _is_key(block: str, name: str) -> bool:
    if not block.startswith("[[keys]]"):
        return False
    return [key.name for key in msgspec.toml.decode(block, type=_KeysFile).keys] == [name]


def _hash(salt: str, presented: str) -> str:
    return hashlib.sha256(f"{salt}:{presented}".encode("utf-8", "surrogateescape")).hexdigest()


def _as_toml(key: Key) -> str:
    """One table of the file. Basic strings of TOML are JSON's; the other values are spelled alike."""
    standard = {field.name: field.default for field in msgspec.structs.fields(Key)}
    lines = ["[[keys]]"]
    for name in Key.__struct_fields__:
        value = getattr(key, name)
        if value not in (None, [], standard[name]):
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"
