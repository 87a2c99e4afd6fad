"""Target: one place calls can be sent to, and how a caller's request is worded for it."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from paceline.accelerate.key import TENANT_HEADERS
from paceline.accelerate.routing.credentials import read_credential
from paceline.accelerate.routing.policy import Deployment
from paceline.accelerate.routing.providers import Clients, Providers, without_version
from paceline.wire.clients import Client

Headers = Sequence[tuple[bytes, bytes]]

_KEY_HEADERS = {"openai": "authorization", "anthropic": "x-api-key", "gemini": "x-goog-api-key"}
_OPERATION = re.compile(r"(?:.*?/(v1|v1beta|v1alpha)|.*/deployments/[^/]+)(/.*)", re.DOTALL)


class Worded(msgspec.Struct, frozen=True, gc=False):
    """A request as one target wants it. A Struct, for every call makes one."""

    target: str
    headers: Headers
    body: bytes


class Target:
    """A provider, or one deployment at it."""

    __slots__ = (
        "_base",
        "_extra",
        "_is_plain",
        "_query",
        "_replaces_key",
        "_replaces_version",
        "_scope",
        "client",
        "credential",
        "deployment",
        "dialect",
        "name",
    )

    def __init__(
        self,
        client: Client,
        dialect: str,
        name: str,
        *,
        base: str = "",
        replaces_version: bool = False,
        extra: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        credential: str | None = None,
        key_header: str | None = None,
        keyless: bool = False,
    ) -> None:
        """`base` goes before a request's path; `replaces_version`: in the place of its /v1. `credential`: its own."""
        self.client = client
        self.dialect = dialect
        self.name = name
        self.deployment = None if name == dialect else name  # its name where the policy gave it one
        self._base = base
        self._replaces_version = replaces_version
        self._query = dict(query or {})
        self._extra = [(k.lower().encode(), v.encode()) for k, v in (extra or {}).items()]
        self._replaces_key = keyless or credential is not None
        self._is_plain = not (base or replaces_version or query or extra or self._replaces_key)
        own = hashlib.sha256(f"{name}\n{credential or ''}".encode()).digest()
        self.credential = own if self._replaces_key else None
        self._scope = b"" if name == dialect else name.encode() + b"\n"
        if credential is not None:
            header = key_header or _KEY_HEADERS[dialect]
            value = f"Bearer {credential}" if header.lower() == "authorization" else credential
            self._extra.append((header.lower().encode(), value.encode()))

    def quota_of(self, caller: bytes) -> bytes:
        """Whose quota a call takes: providers count by credential and deployment.

        `caller` is the digest of the credential it came with.
        """
        return self.credential or self._scope + caller

    @property
    def has_own_key(self) -> bool:
        """True when callers' credentials do not go there."""
        return self._replaces_key

    def word(self, target: str, headers: Headers, body: bytes) -> Worded:
        """The request for this place; `headers` have passed `to_upstream`."""
        if self._is_plain:
            return Worded(target, headers, body)
        target = self._at_base(target)
        if self._extra or self._replaces_key:
            dropped = {name for name, _ in self._extra} | (TENANT_HEADERS if self._replaces_key else frozenset())
            headers = [*(header for header in headers if header[0] not in dropped), *self._extra]
        return Worded(target, headers, body)

    def _at_base(self, target: str) -> str:
        path, _, query = target.partition("?")
        found = _OPERATION.fullmatch(path) if self._replaces_version else None
        path = self._base + (found[2] if found is not None else path)
        if self._query or (self._replaces_key and query):
            own = {*self._query, *(("key",) if self._replaces_key else ())}  # Gemini's key may come in the query
            kept = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] not in own]
            query = urlencode([*kept, *self._query.items()])
        return f"{path}?{query}" if query else path


def provider_targets(providers: Providers, clients: Clients) -> dict[str, Target]:
    """The target of each dialect. Raises ConfigError for a URL that is none."""
    targets = {}
    for dialect in _KEY_HEADERS:
        client, base = clients.at(providers.base_of(dialect))
        targets[dialect] = Target(client, dialect, dialect, base=base)
    return targets


def deployment_target(deployment: Deployment, clients: Clients, environ: Mapping[str, str]) -> Target:
    """Where a deployment's calls go. Raises ConfigError as `provider_targets` does.

    Its URL is what the provider's SDK takes as base URL. OpenAI's ends with the version, which Azure and others spell
    differently, so its path stands in the place of the request's /v1; Anthropic's and Gemini's come without.
    """
    openai = deployment.provider == "openai"
    client, base = clients.at(deployment.url if openai else without_version(deployment.url))
    credential = credential_of(deployment, environ)
    azure = (urlsplit(deployment.url).hostname or "").endswith(".azure.com")
    return Target(
        client,
        deployment.provider,
        deployment.name,
        base=base or "/v1" if openai else base,
        replaces_version=openai,
        extra=deployment.headers,
        query=deployment.query,
        credential=credential,
        key_header=deployment.key_header or ("api-key" if azure and openai else None),
        keyless=deployment.keyless,
    )


def credential_of(deployment: Deployment, environ: Mapping[str, str]) -> str | None:
    """What a deployment is sent in the place of the caller's own; None: nothing. ConfigError: it is not there."""
    return read_credential(
        f"deployment {deployment.name}", environ, key_env=deployment.key_env, key_file=deployment.key_file
    )
