"""The door: who may come in, as whom, and with which provider's credential the call goes on."""

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from paceline.accelerate.caller import Caller
from paceline.gateway.keys.file import CALLS, MONITOR, OPERATOR, Key, id_of
from paceline.gateway.keys.models import ModelCheck
from paceline.gateway.keys.quota import Meter, Refusal
from paceline.wire.call import Usage
from paceline.wire.dialects import CREDENTIAL_HEADERS, dialect_for, dialect_of, without_credentials
from paceline.wire.http import Headers, HttpRequest

Header = tuple[bytes, bytes]

# Where SDKs put a key: OpenAI's, Anthropic's, Gemini's, Azure's. The first one present counts.
_PRESENTED = (b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key")
# Never sent on once the gateway has a key of its own: the caller's key, and whose account it would choose.
_TAKEN_OFF = frozenset({*_PRESENTED, *CREDENTIAL_HEADERS, b"content-length"})
_MEMO = 4096  # spellings of valid keys
_UNKNOWN = Refusal(status=401, code="invalid_api_key", message="this gateway does not know the key that was sent")
_MISSING = Refusal(
    status=401,
    code="invalid_api_key",
    message="this gateway wants one of its keys, as `Authorization: Bearer`, `x-api-key` or `x-goog-api-key`",
)
_MONITORS_ONLY = Refusal(status=403, code="forbidden", message="this gateway key reads metrics and makes no calls")
_READS_ONLY = Refusal(status=403, code="forbidden", message="this gateway key reads pages and changes nothing")
_NOT_A_MONITOR = Refusal(status=403, code="forbidden", message="this page is for gateway keys with the role monitor")
_OTHER_PATH = Refusal(
    status=403, code="forbidden", message="this gateway key is for model calls; this path needs one with other_paths"
)


class KeyCaller(Caller, frozen=True, kw_only=True, eq=False):
    """A caller known by its key."""

    key: Key
    meter: Meter

    def charge(self, usage: Usage | None, cost_usd: float | None) -> None:
        """Count it against the key's limits and budget."""
        self.meter.charge(usage.input_tokens + usage.output_tokens if usage is not None else 0, cost_usd)


class _Known(msgspec.Struct, frozen=True):
    """What the head of a request says, the same for all requests with that head."""

    caller: KeyCaller | None
    headers: Headers  # with the provider's credential
    target: str

    def __repr__(self) -> str:
        return f"_Known(caller={self.caller!r})"


class Door:
    """Lets callers in by their keys and puts the providers' credentials on their calls.

    Args:
        keys: The keys that are known, with their meters. None: no key is asked for.
        credentials: The header to send, by the name of a dialect. A provider without one gets none of ours; when no
            key is asked for, it gets the caller's own.
    """

    def __init__(self, keys: Sequence[tuple[Key, Meter]] | None, credentials: Mapping[str, Header]) -> None:
        self._callers = (
            {key.id: KeyCaller(tenant=tenant_digest(key.owner), name=key.name, priority=key.priority, key=key, meter=m)
             for key, m in keys}
            if keys is not None else None
        )  # fmt: skip
        self._credentials = dict(credentials)
        self._memo: dict[bytes, KeyCaller] = {}
        self._models = ModelCheck()

    def admit(self, request: HttpRequest) -> KeyCaller | Refusal | None:
        """Who makes this call, or why it is not made; None: somebody without a key, where none is asked for.

        The request is changed: the caller's credential is taken off and the provider's put on. About 1 us for a head
        seen before on the connection, when its key has no limits.
        """
        known = request.notes.get(self)
        if known is None:
            found = self._find(request)
            if isinstance(found, Refusal):
                return found
            request.notes.clear()  # of an earlier configuration: the tenant may be another now
            known = request.notes[self] = self._known(request, found)
        caller: KeyCaller | None = known.caller
        if caller is not None:
            refusal = self._unfit(caller.key, request) or caller.meter.take()
            if refusal is not None:
                return refusal
        request.headers, request.target = known.headers, known.target
        return caller

    @property
    def asks_for_keys(self) -> bool:
        """True when nobody gets in without one."""
        return self._callers is not None

    def caller_of(self, request: HttpRequest) -> KeyCaller | None:
        """Who sent this request, by its key; None: nobody known. Nothing is counted."""
        found = self._find(request)
        return found if isinstance(found, KeyCaller) else None

    def unfit_for_pages(self, request: HttpRequest) -> Refusal | None:
        """Why this request may not see metrics and costs."""
        found = self._find(request)
        if isinstance(found, Refusal) or found is None:
            return found
        return None if found.key.role in (MONITOR, OPERATOR) else _NOT_A_MONITOR

    def whose_answers(self, request: HttpRequest) -> "KeyCaller | Refusal | None":
        """Whose kept answers this request may drop: the caller's; None: everybody's."""
        found = self._find(request)
        if isinstance(found, Refusal) or found is None:
            return found
        if found.key.role == MONITOR:
            return _READS_ONLY
        return None if found.key.role == OPERATOR else found

    def _find(self, request: HttpRequest) -> KeyCaller | Refusal | None:
        if self._callers is None:
            return None
        presented = _presented(request)
        if presented is None:
            return _MISSING
        caller = self._memo.get(presented)
        if caller is None:
            text = _bare(presented)
            caller = self._callers.get(id_of(text) or "")
            if caller is None or not caller.key.matches(text):
                return _UNKNOWN
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            self._memo[presented] = caller
        return caller

    def _known(self, request: HttpRequest, caller: KeyCaller | None) -> _Known:
        credential = self._credentials.get(dialect_for(request.path, request.headers).name)
        if caller is None and credential is None:
            return _Known(None, request.headers, request.target)
        headers = [header for header in request.headers if header[0] not in _TAKEN_OFF]
        if credential is not None:
            headers.append(credential)
        return _Known(caller, headers, without_credentials(request.target)[0])

    def _unfit(self, key: Key, request: HttpRequest) -> Refusal | None:
        """Why this key may not make this call at all."""
        if key.role != CALLS:
            return _MONITORS_ONLY
        path = request.path
        called = dialect_of(path) if request.method == "POST" else None
        if called is None:
            return None if key.other_paths or _lists_models(request) else _OTHER_PATH
        return self._models.unfit(key, called[0], path, request)


def tenant_digest(owner: str) -> bytes:
    """The partition of caches and queues a tenant lives in."""
    return hashlib.sha256(b"gateway tenant\0" + owner.encode()).digest()


def _presented(request: HttpRequest) -> bytes | None:
    """The credential a request carries, as it was sent."""
    found: dict[bytes, bytes] = {}
    for name, value in request.headers:
        if name in _PRESENTED:
            found.setdefault(name, value)
    for name in _PRESENTED:
        if name in found:
            return found[name]
    _, query = without_credentials(request.target)
    return query.partition("=")[2].encode("latin-1") if query else None


def _bare(presented: bytes) -> str:
    """The key without the scheme in front of it."""
    scheme, _, rest = presented.partition(b" ")
    return (rest if scheme.lower() == b"bearer" else presented).strip().decode("latin-1")


def _lists_models(request: HttpRequest) -> bool:
    """GET /v1/models, /v1beta/models/NAME and their like: what SDKs ask before they call."""
    *_, parent, last = ("", *request.path.rstrip("/").split("/"))
    return request.method in ("GET", "HEAD") and "models" in (parent, last)
