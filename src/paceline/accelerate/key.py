"""Keys: which calls ask the same. Tenant first, so one caller's answer can never reach another.

Two calls share a key when server, tenant, path, delivery (streamed or plain), the headers that change an answer and
every field of the body agree, apart from the dialect's hygiene fields (user, metadata and their like).
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from paceline.accelerate.cache.keys import named_key, partition_of
from paceline.accelerate.cache.policy import TEXT
from paceline.wire.call import Dialect
from paceline.wire.dialects import DIALECTS

# Headers that say whose call it is, in any dialect. Hashed, so no secret is kept in a key.
TENANT_HEADERS = frozenset[bytes]().union(*(dialect.credential_headers for dialect in DIALECTS))
# Quotes, and marks that end a word; not after a digit (5!), and no other sign: 1.5, -3, a*b and 10% mean something.
_IDLE_PUNCTUATION = re.compile(r"""(?<!\d)(?:["'`\u2018\u2019\u201c\u201d\u2026]|[.,;:!?]+(?=\s|$))""")


def tenant_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Digest of the credentials among the headers (lower-case names); callers without any share one tenant."""
    secrets = [name + b"\0" + value for name, value in headers if name in TENANT_HEADERS]
    return hashlib.sha256(b"\n".join(sorted(secrets))).digest()


def call_key(
    tenant: bytes, place: bytes, dialect: Dialect, path: str, call: dict[str, Any], canon: bytes, *, mode: str
) -> bytes:
    """32 bytes that equal calls share, the tenant's partition first.

    `place` is the server and what of the head changes the answer; `call` is the decoded body, `canon` its canonical
    form; `mode` EXACT or TEXT (see `plain`).
    """
    if mode == TEXT:
        texts = {name: _plain_texts(value) for name, value in call.items() if name in dialect.text_fields}
        canon = dialect.canonical({**call, **texts})
    where, how = path.encode(), dialect.delivery(path, call)
    # Each part says its length, so no two lists of parts look alike.
    name = b"%d:%b%d:%b%d:%b%d:%b" % (len(place), place, len(where), where, len(how), how, len(canon), canon)
    return named_key(partition_of(tenant), name)


def plain(text: str) -> str:
    """The text in lower case, without quotes and marks that end a word, white space runs as one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_IDLE_PUNCTUATION.sub("", folded).split())


def _plain_texts(value: object) -> object:
    """Texts of messages made plain; images, arguments and names stay as they are."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [_plain_texts(item) for item in value]
    if isinstance(value, dict):
        return {k: _plain_texts(v) if k in ("content", "text", "parts") else v for k, v in value.items()}
    return value
