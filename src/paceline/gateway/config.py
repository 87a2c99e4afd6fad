"""What a gateway is told: one TOML file, a file of keys, and what the command line says instead."""

import ipaddress
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from paceline.accelerate.policy import RECOMMENDED, Policy, load_policy
from paceline.accelerate.routing.credentials import read_credential
from paceline.errors import ConfigError
from paceline.gateway.keys.file import Key, check_distinct, read_keys

MAX_WORKERS = 256
DEFAULT_URLS = {
    "openai": "https://api.openai.com",
    "anthropic": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com",
}
# The variable that points each provider's SDK elsewhere, and what belongs to the end of that URL.
BASE_URL_ENV = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL", "gemini": "GOOGLE_GEMINI_BASE_URL"}
BASE_URL_PATH = {"openai": "/v1", "anthropic": "", "gemini": ""}
_CREDENTIAL_HEADERS = {"openai": "authorization", "anthropic": "x-api-key", "gemini": "x-goog-api-key"}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[server]: where it listens and how it behaves towards callers and providers."""

    host: str = "127.0.0.1"
    port: int = 8787  # 0: any free one
    workers: int = 1  # processes that share the port
    insecure_bind: bool = False  # listen without keys where others can reach it
    unready_s: float = 0.0  # how long readiness says 503, and calls are still taken, before it stops accepting
    drain_s: float = 30.0  # how long calls in flight may take to finish then
    access_log: str | None = None  # a file, "-": standard output; None: off
    connect_s: float = 10.0  # to a provider, TLS included
    first_byte_s: float = 300.0  # from a call sent to the head of its answer
    silence_s: float = 120.0  # between two pieces of an answer
    http2_servers: list[str] = []  # https URLs of providers and deployments that are asked over HTTP/2
    connections: int = 20_000  # of callers, each worker; above: 503
    body_bytes: int = 64 * 1024 * 1024  # of a call; above: 413

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65_535, f"port must be between 0 and 65535; got {self.port}")
        _require(1 <= self.workers <= MAX_WORKERS, f"workers must be between 1 and {MAX_WORKERS}; got {self.workers}")
        for name in ("unready_s", "drain_s"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} must be at least 0; got {value:g}")
        for name in ("connect_s", "first_byte_s", "silence_s", "connections", "body_bytes"):
            value = getattr(self, name)
            _require(value > 0, f"{name} must be above 0; got {value:g}")
        for url in self.http2_servers:
            parts = urlsplit(url)
            _require(
                parts.scheme == "https" and bool(parts.hostname),
                f"http2_servers wants https URLs, as HTTP/2 is agreed on in TLS; got {url!r}",
            )


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[providers.NAME]: where the calls of one dialect go, and with whose credential."""

    url: str | None = None  # None: the provider's own
    key_env: str | None = None  # variable that holds the credential the gateway sends instead of the caller's
    key_file: str | None = None  # or file, relative to this one; read again on reload
    key_header: str | None = None  # where it goes; None: where the dialect has it. Azure: "api-key"

    def __post_init__(self) -> None:
        if self.url is not None:
            parts = urlsplit(self.url)
            _require(parts.scheme in ("http", "https") and bool(parts.hostname), f"not a server's URL: {self.url!r}")
            _require(parts.username is None, "a URL with a user name in it; put the credential into key_env")
        _require(self.key_env is None or self.key_file is None, "key_env and key_file contradict each other")
        if self.key_header is not None:
            _require(bool(re.fullmatch(r"[a-z0-9-]+", self.key_header)), "key_header must be a lower-case header name")

    @property
    def key_source(self) -> str | None:
        """Where its credential comes from, to show; None: it has none."""
        return self.key_env if self.key_file is None else self.key_file


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of it: [server], [providers.NAME], [policy...], keys_file, [[keys]]."""

    server: ServerSettings = ServerSettings()
    providers: dict[str, ProviderSettings] = {}
    policy: Policy = RECOMMENDED
    keys_file: str | None = None  # as `paceline keys` writes it; relative to this file
    keys: list[Key] = []
    spent_file: str | None = None  # keeps what keys with a budget spent; None: beside the file of the keys

    def __post_init__(self) -> None:
        for name in self.providers:
            _require(name in DEFAULT_URLS, f"providers.{name}: the providers are {', '.join(DEFAULT_URLS)}")

    @property
    def wants_keys(self) -> bool:
        """True when callers have to show a key."""
        return bool(self.keys) or self.keys_file is not None

    def url_of(self, provider: str) -> str:
        """Base URL of a provider, without /v1."""
        url = self.providers.get(provider, ProviderSettings()).url or DEFAULT_URLS[provider]
        return url.rstrip("/").removesuffix("/v1")


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """Where a configuration comes from, so that it can be read again while serving."""

    config: str | None = None
    policy: str | None = None
    keys: str | None = None
    upstream: str | None = None  # one server for all dialects
    passes_on: bool = False  # without a policy, change nothing: what is recorded has to be what the application does
    overrides: dict[str, Any] = {}  # fields of ServerSettings said on the command line

    def load(self) -> GatewayConfig:
        """Read everything. ConfigError names the file and the field."""
        config = _read(Path(self.config)) if self.config is not None else GatewayConfig()
        replace = msgspec.structs.replace
        if self.policy is not None:
            _contradiction(self.config, config.policy is not RECOMMENDED, "--policy", "[policy]")
            config = replace(config, policy=load_policy(Path(self.policy)))
        elif self.passes_on and config.policy is RECOMMENDED:
            config = replace(config, policy=Policy())
        if self.upstream is not None:
            _contradiction(self.config, bool(config.providers), "--upstream", "[providers]")
            config = replace(config, providers=_everywhere(self.upstream))
        if self.keys is not None:
            config = replace(config, keys_file=str(Path(self.keys).resolve()))
        if config.keys_file is not None:
            config = replace(config, keys=[*config.keys, *read_keys(Path(config.keys_file))])
            check_distinct(config.keys, f"{self.config or 'the configuration'} with {config.keys_file}")
        config = replace(config, spent_file=self._spent_file(config))
        try:
            server = msgspec.convert({**msgspec.to_builtins(config.server), **self.overrides}, ServerSettings)
        except msgspec.ValidationError as error:
            msg = f"the command line is wrong: {error}"
            raise ConfigError(msg) from error
        config = replace(config, server=server)
        check_host(server.host, keys=config.wants_keys, insecure_bind=server.insecure_bind)
        check_deployments(config, credentials(config, os.environ))
        check_http2(config)
        return config

    def _spent_file(self, config: GatewayConfig) -> str | None:
        if not any(key.has_budget for key in config.keys):
            return None
        return config.spent_file or f"{config.keys_file or self.config}.spent.json"

    @property
    def files(self) -> list[str]:
        """The files it reads, to be named to the user."""
        return [path for path in (self.config, self.policy, self.keys) if path is not None]


def policy_of(config: GatewayConfig) -> Policy:
    """The policy of one process: limits that no Redis shares are divided by the processes of this gateway."""
    policy, workers = config.policy, config.server.workers
    if workers == 1 or policy.limits.processes > 1:
        return policy
    replace = msgspec.structs.replace
    return replace(policy, limits=replace(policy.limits, processes=workers))


def credentials(config: GatewayConfig, environ: Mapping[str, str]) -> dict[str, tuple[bytes, bytes]]:
    """The header each provider is sent, by the name of its dialect. ConfigError: one is not there."""
    found = {}
    for name, provider in config.providers.items():
        secret = read_credential(f"providers.{name}", environ, key_env=provider.key_env, key_file=provider.key_file)
        if secret is None:
            continue
        header = provider.key_header or _CREDENTIAL_HEADERS[name]
        value = f"Bearer {secret}" if header == "authorization" else secret
        found[name] = (header.encode(), value.encode())
    return found


def check_deployments(config: GatewayConfig, credentials: Mapping[str, tuple[bytes, bytes]]) -> None:
    """Refuse to send a provider's credential to a deployment elsewhere that says nothing of its own."""
    for deployment in config.policy.routing.deployments:
        mine = deployment.provider in credentials
        elsewhere = urlsplit(deployment.url).netloc != urlsplit(config.url_of(deployment.provider)).netloc
        if mine and elsewhere and not deployment.has_own_key:
            msg = (
                f"routing.deployments {deployment.name} would be sent the credential of providers."
                f"{deployment.provider}: give it a key_env or key_file of its own, or keyless = true"
            )
            raise ConfigError(msg)


def check_http2(config: GatewayConfig) -> None:
    """Refuse servers in `http2_servers` that no call goes to: a misspelt one would quietly be asked over HTTP/1.1."""
    urls = [config.url_of(name) for name in DEFAULT_URLS]
    urls += [deployment.url for deployment in config.policy.routing.deployments]
    known = {urlsplit(url).netloc for url in urls}
    for url in config.server.http2_servers:
        if urlsplit(url).netloc not in known:
            msg = f"server.http2_servers has {url}, where no provider or deployment is; they are at {', '.join(known)}"
            raise ConfigError(msg)


def check_host(host: str, *, keys: bool, insecure_bind: bool) -> None:
    """Refuse an address that others can reach, unless callers need keys there."""
    loopback = host == "localhost"
    with suppress(ValueError):
        loopback = loopback or ipaddress.ip_address(host).is_loopback
    if not (loopback or keys or insecure_bind):
        msg = (
            f"refusing to listen on {host} without keys: anyone who reaches it could use this gateway and its cache. "
            "Make keys with `paceline keys add NAME --file keys.toml` and pass --keys keys.toml, or use "
            "--host 127.0.0.1, or --insecure-bind if only trusted callers can reach it"
        )
        raise ConfigError(msg)


def _read(path: Path) -> GatewayConfig:
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"cannot read the configuration {path}: {error.strerror}"
        raise ConfigError(msg) from error
    try:
        config = msgspec.toml.decode(data, type=GatewayConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"the configuration {path} is wrong: {error}"
        raise ConfigError(msg) from error
    for field in ("keys_file", "spent_file"):
        name = getattr(config, field)
        if name is not None:
            config = msgspec.structs.replace(config, **{field: str((path.parent / name).resolve())})
    check_distinct(config.keys, str(path))
    return _in_folder(config, path.parent.resolve())


def _in_folder(config: GatewayConfig, folder: Path) -> GatewayConfig:
    """The same with the files of credentials relative to this folder."""
    replace = msgspec.structs.replace
    providers = {
        name: provider
        if provider.key_file is None
        else replace(provider, key_file=str(folder / Path(provider.key_file).expanduser()))
        for name, provider in config.providers.items()
    }
    if config.policy is RECOMMENDED:  # says that nothing was said
        return replace(config, providers=providers)
    policy = replace(config.policy, routing=config.policy.routing.in_folder(folder))
    return replace(config, providers=providers, policy=policy)


def _everywhere(url: str) -> dict[str, ProviderSettings]:
    """One server for all dialects."""
    try:
        one = msgspec.convert({"url": url}, ProviderSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from error
    return dict.fromkeys(DEFAULT_URLS, one)


def _contradiction(config: str | None, both: bool, option: str, section: str) -> None:
    if both:
        msg = f"{option} and {section} of {config} both say it: leave one out"
        raise ConfigError(msg)
