"""What the simulated provider simulates: models with their pace and limits, faults, keys."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from paceline.errors import ConfigError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model. Times are seconds at its real pace; lengths are tokens; None: no limit."""

    kind: str = "chat"  # or "embedding"
    ttft_p50_s: float = 0.4  # to the first token, log-normal; for an embedding: to the answer
    ttft_p95_s: float = 1.0
    token_gap_s: float = 0.012  # between tokens, gamma with a coefficient of variation of 0.5
    output_p50_tokens: float = 129.0  # log-normal; both from the Azure conversation trace of 2023
    output_p90_tokens: float = 424.0
    no_context_ratio: float = 2.2  # an answer without context is this much longer
    requests_per_min: float | None = None
    tokens_per_min: float | None = None
    burst_s: float = 6.0  # a full bucket holds what the limit allows in this time
    dimensions: int = 384

    def __post_init__(self) -> None:
        _require(self.kind in ("chat", "embedding"), f"kind must be chat or embedding; got {self.kind!r}")
        _require(0 < self.ttft_p50_s <= self.ttft_p95_s, "ttft_p50_s must be above 0 and not above ttft_p95_s")
        _require(
            0 < self.output_p50_tokens <= self.output_p90_tokens, "output_p50_tokens must be 1 to output_p90_tokens"
        )
        _require(self.token_gap_s >= 0, f"token_gap_s must not be negative; got {self.token_gap_s:g}")
        _require(self.burst_s > 0, f"burst_s must be above 0; got {self.burst_s:g}")
        for name in ("requests_per_min", "tokens_per_min"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} must be above 0; got {value}")


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of requests that go wrong, 0 to 1. Bursts follow a two-state chain over the order of arrival."""

    error_500: float = 0.0
    timeout: float = 0.0  # accepted, never answered
    cut_stream: float = 0.0  # a streamed answer ends without its last events
    p_bad: float = 0.0  # chance to turn from the good state to the bad one, per request
    p_good: float = 0.2  # and back
    bad_error: float = 0.5  # share of 503 in the bad state

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            _require(0 <= getattr(self, name) <= 1, f"{name} must be 0 to 1; got {getattr(self, name)}")


_EMBEDDING = Model(kind="embedding", ttft_p50_s=0.12, ttft_p95_s=0.3, token_gap_s=0.0)

# Knobs read off published measurements that differ among themselves by up to ten times; never claims about a product.
PRESETS: dict[str, Model] = {
    "gpt-4": Model(ttft_p50_s=0.8, ttft_p95_s=2.0, token_gap_s=0.094),
    "gpt-4-turbo": Model(ttft_p50_s=0.9, ttft_p95_s=2.0, token_gap_s=0.02),
    "gpt-4o": Model(ttft_p50_s=0.35, ttft_p95_s=0.9, token_gap_s=0.012),
    "gpt-4o-mini": Model(ttft_p50_s=0.3, ttft_p95_s=0.8, token_gap_s=0.01),
    "gpt-3.5-turbo": Model(ttft_p50_s=0.3, ttft_p95_s=0.7, token_gap_s=0.03),
    "text-embedding-3-small": _EMBEDDING,
    "text-embedding-3-large": msgspec.structs.replace(_EMBEDDING, ttft_p50_s=0.18, ttft_p95_s=0.4, dimensions=1024),
}


class ProviderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The whole provider. The defaults are the presets without limits or faults."""

    models: dict[str, Model] = msgspec.field(default_factory=lambda: dict(PRESETS))
    faults: Faults = Faults()
    api_keys: list[str] = []  # when given, any other key is refused with 401
    failed_count: bool = False  # refused requests count against the limit too


def load_config(path: Path) -> ProviderConfig:
    """Read a TOML file: `[models."gpt-4o"]` overrides fields of the preset of that name, or makes a new model.

    Raises:
        ConfigError: missing file, wrong TOML, unknown or impossible field; the message names the place.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise ConfigError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path}: not valid TOML: {error}"
        raise ConfigError(msg) from error
    try:
        models = {**PRESETS, **{name: _model(name, fields) for name, fields in raw.pop("models", {}).items()}}
        config = msgspec.convert(raw, _Rest)
    except (msgspec.ValidationError, ValueError, AttributeError) as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from error
    return ProviderConfig(
        models=models, faults=config.faults, api_keys=config.api_keys, failed_count=config.failed_count
    )


class _Rest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    faults: Faults = Faults()
    api_keys: list[str] = []
    failed_count: bool = False


def _model(name: str, fields: dict[str, Any]) -> Model:
    preset = msgspec.to_builtins(PRESETS[name]) if name in PRESETS else {}
    try:
        return msgspec.convert({**preset, **fields}, Model)
    except (msgspec.ValidationError, TypeError) as error:
        msg = f"models.{name}: {error}"
        raise ValueError(msg) from error
