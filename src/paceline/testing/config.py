"""What the simulated provider simulates: models with their pace and limits, faults, keys."""

import tomllib
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from paceline.errors import ConfigError

_T = TypeVar("_T", bound=msgspec.Struct)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of admitted requests that go wrong, 0 to 1.

    The first three fall on requests by their prompts. Bursts of 503 follow a two-state chain (Gilbert and Elliott) over
    the order of arrival, as real outages do.
    """

    error_500: float = 0.0
    timeout: float = 0.0  # accepted, never answered
    cut_stream: float = 0.0  # a streamed answer ends without its last events
    p_bad: float = 0.0  # chance to turn from the good state to the bad one, per request
    p_good: float = 0.2  # and back
    bad_error: float = 0.5  # share of 503 in the bad state

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            _require(0 <= getattr(self, name) <= 1, f"{name} must be 0 to 1; got {getattr(self, name)}")
        total = self.error_500 + self.timeout + self.cut_stream
        _require(total <= 1, f"error_500, timeout and cut_stream must be at most 1 together; got {total:g}")


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model. Times are seconds at its real pace; lengths are tokens; None: no limit."""

    kind: str = "chat"  # or "embedding"
    provider: str | None = None  # "openai", "anthropic", "gemini"; None: all three serve it
    ttft_p50_s: float = 0.4  # to the first token, log-normal; for an embedding: to the answer
    ttft_p95_s: float = 1.0
    ttft_per_1000_tokens_s: float = 0.0  # added for every 1,000 tokens of input
    event_tokens: int = 1  # tokens that one event of a stream brings
    token_gap_s: float = 0.012  # between tokens, gamma with a coefficient of variation of 0.5
    output_p50_tokens: float = 129.0  # log-normal; both from the Azure conversation trace of 2023
    output_p90_tokens: float = 424.0
    no_context_ratio: float = 2.2  # an answer without context is this much longer
    max_output_tokens: int = 4096
    context_tokens: int = 128_000  # longer prompts are refused; of an embedding: for each input
    requests_per_min: float | None = None
    tokens_per_min: float | None = None
    burst_s: float = 6.0  # a full bucket holds what the limit allows in this time
    dimensions: int = 384  # of an embedding, unless the call says how many
    faults: Faults | None = None  # None: those of the whole provider

    def __post_init__(self) -> None:
        _require(self.kind in ("chat", "embedding"), f"kind must be chat or embedding; got {self.kind!r}")
        known = self.provider in (None, "openai", "anthropic", "gemini")
        _require(known, f"provider must be openai, anthropic or gemini; got {self.provider!r}")
        _require(0 < self.ttft_p50_s <= self.ttft_p95_s, "ttft_p50_s must be above 0 and not above ttft_p95_s")
        lengths = 1 <= self.output_p50_tokens <= self.output_p90_tokens
        _require(lengths, "output_p50_tokens must be at least 1 and not above output_p90_tokens")
        for name in ("token_gap_s", "ttft_per_1000_tokens_s"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative; got {getattr(self, name):g}")
        for name in ("requests_per_min", "tokens_per_min", "burst_s", "no_context_ratio"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} must be above 0; got {value}")
        for name in ("max_output_tokens", "context_tokens", "dimensions", "event_tokens"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1; got {getattr(self, name)}")
        _require(
            self.dimensions <= MAX_DIMENSIONS, f"dimensions must be at most {MAX_DIMENSIONS}; got {self.dimensions}"
        )


MAX_DIMENSIONS = 4096
_EMBEDDING = Model(kind="embedding", ttft_p50_s=0.12, ttft_p95_s=0.3, token_gap_s=0.0, context_tokens=8192)
_with = msgspec.structs.replace
_CLAUDE = Model(provider="anthropic", context_tokens=200_000, max_output_tokens=64_000)
_SONNET = _with(_CLAUDE, ttft_p50_s=1.0, ttft_p95_s=2.5, token_gap_s=0.018)
_GEMINI = Model(provider="gemini", context_tokens=1_048_576, max_output_tokens=65_536, event_tokens=8)
# Knobs read off published measurements that differ among themselves by up to ten times; never claims about a product.
_OPENAI: dict[str, Model] = {
    "gpt-4": Model(ttft_p50_s=0.8, ttft_p95_s=2.0, token_gap_s=0.094),
    "gpt-4-turbo": Model(ttft_p50_s=0.9, ttft_p95_s=2.0, token_gap_s=0.02),
    "gpt-4o": Model(ttft_p50_s=0.35, ttft_p95_s=0.9, token_gap_s=0.012),
    "gpt-4o-mini": Model(ttft_p50_s=0.3, ttft_p95_s=0.8, token_gap_s=0.01),
    "gpt-3.5-turbo": Model(ttft_p50_s=0.3, ttft_p95_s=0.7, token_gap_s=0.03),
    "text-embedding-3-small": _EMBEDDING,
    "text-embedding-3-large": _with(_EMBEDDING, ttft_p50_s=0.18, ttft_p95_s=0.4, dimensions=1024),
}
PRESETS: dict[str, Model] = {
    **{name: _with(model, provider="openai") for name, model in _OPENAI.items()},
    "claude-haiku-4-5": _with(_CLAUDE, ttft_p50_s=0.5, ttft_p95_s=1.2, token_gap_s=0.011),
    "claude-sonnet-4-5": _SONNET,
    "claude-sonnet-4-6": _SONNET,
    "gemini-2.5-flash": _with(_GEMINI, ttft_p50_s=0.4, ttft_p95_s=0.9, token_gap_s=0.005),
    "gemini-2.5-pro": _with(_GEMINI, ttft_p50_s=0.7, ttft_p95_s=2.0, token_gap_s=0.014),
    "gemini-embedding-001": _with(_EMBEDDING, provider="gemini", context_tokens=2048, dimensions=768),
}


class ProviderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The whole provider. The defaults are the presets without limits or faults."""

    models: dict[str, Model] = msgspec.field(default_factory=lambda: dict(PRESETS))
    faults: Faults = Faults()
    api_keys: list[str] = []  # when given, any other key is refused with 401
    failed_count: bool = False  # refused and failed requests count against the limit too

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Self:
        """The configuration in the shape of its TOML file: `{"models": {"gpt-4o": {"requests_per_min": 60}}}`.

        Models override fields of the preset of their name, or are new. ValueError: unknown or impossible field.
        """
        rest = {name: value for name, value in raw.items() if name != "models"}
        models = raw.get("models", {})
        if not isinstance(models, dict) or not all(isinstance(fields, dict) for fields in models.values()):
            msg = 'models must be tables like [models."gpt-4o"]'
            raise ValueError(msg)
        found = {
            name: _converted({**_preset(name), **fields}, Model, f"models.{name}") for name, fields in models.items()
        }
        whole = _converted(rest, _Rest, "")
        return cls(models={**PRESETS, **found}, **msgspec.structs.asdict(whole))


def load_config(path: Path) -> ProviderConfig:
    """Read a TOML file: `[models."gpt-4o"]` overrides fields of the preset of that name, or makes a new model.

    Raises:
        ConfigError: missing file, wrong TOML, unknown or impossible field; the message names the place.
    """
    try:
        return ProviderConfig.of(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise ConfigError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path}: not valid TOML: {error}"
        raise ConfigError(msg) from error
    except ValueError as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from error


class _Rest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    faults: Faults = Faults()
    api_keys: list[str] = []
    failed_count: bool = False


def _preset(name: str) -> dict[str, Any]:
    return {k: v for k, v in msgspec.structs.asdict(PRESETS[name]).items() if v is not None} if name in PRESETS else {}


def _converted(raw: dict[str, Any], kind: type[_T], where: str) -> _T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__)
        hint = f" (known: {known})" if "unknown field" in str(error) else ""
        msg = f"{where}{': ' if where else ''}{error}{hint}"
        raise ValueError(msg) from error
