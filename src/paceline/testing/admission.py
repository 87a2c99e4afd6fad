"""Who is let in at the simulated provider, and what befalls them: keys, limits, draws, faults."""

import random
from collections import OrderedDict
from typing import Any, TypeVar

import msgspec

from paceline.testing.buckets import Quota, Refused
from paceline.testing.config import Faults, Model, ProviderConfig
from paceline.testing.dialects.house import Excess, House
from paceline.testing.draws import Draw
from paceline.testing.exchange import ApiError, Headers
from paceline.wire.http import HttpRequest

_V = TypeVar("_V")

_REMEMBERED_PROMPTS = 200_000  # above, the prompt seen longest ago counts as new again
_REMEMBERED_QUOTAS = 10_000


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a model that exists."""

    request: HttpRequest
    house: House
    name: str  # of the model, as asked for
    known: str  # its name in the configuration
    model: Model
    key: str
    prompt: bytes  # digest of what is asked of which model
    began_s: float  # wall clock
    at_s: float  # since the provider started, at its pace


class Admission:
    """Limits and faults. Times are at the provider's pace, except in what clients are told to wait."""

    def __init__(self, config: ProviderConfig, *, speed: float, seed: int) -> None:
        self._config = config
        self._speed = speed
        self._seed = seed
        self._quotas: OrderedDict[tuple[str, str], Quota] = OrderedDict()
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self._chains: dict[str, _Chain] = {}

    def check_key(self, key: str, house: House) -> None:
        """Raises ApiError when keys are configured and this is none of them."""
        if self._config.api_keys and key not in self._config.api_keys:
            raise house.wrong_key(key)

    def draw(self, ask: Ask) -> Draw:
        """The draws this request gets if it is admitted now."""
        return Draw(self._seed, ask.name, ask.prompt, self._seen.get(ask.prompt, 0))

    def admit(self, ask: Ask, tokens: int) -> Headers:
        """Count the request against its limits; the headers that say what is left. Raises ApiError 429."""
        quota = self._quotas.get((ask.known, ask.key))
        if quota is None:
            quota = Quota(ask.model, ask.at_s, failed_count=self._config.failed_count)
        remember(self._quotas, (ask.known, ask.key), quota, _REMEMBERED_QUOTAS)
        try:
            quota.admit(tokens, ask.at_s)
        except Refused as refused:
            raise self._rate_error(ask, refused, tokens, self._left(ask, quota)) from None
        # Only what is admitted counts as seen: refusals hang on timing, and must not change anybody's draws.
        remember(self._seen, ask.prompt, self._seen.get(ask.prompt, 0) + 1, _REMEMBERED_PROMPTS)
        return self._left(ask, quota)

    def fault(self, ask: Ask, draw: Draw, tokens: int, *, stream: bool) -> str:
        """What befalls an admitted request: "timeout", "cut_stream" or "". Raises ApiError 500, and 503 or 529."""
        faults = ask.model.faults or self._config.faults
        error, name = None, ""
        if faults.p_bad and self._chain(ask.known).fails(faults):
            error, name = ask.house.overloaded(), "bad_error"
        elif draw.fault < faults.error_500:
            error, name = ask.house.broken(), "error_500"
        if error is not None:
            error.fault = name
            self._quotas[ask.known, ask.key].give_back(tokens, ask.at_s)
            raise error
        if draw.fault < faults.error_500 + faults.timeout:
            return "timeout"
        cut = stream and draw.fault < faults.error_500 + faults.timeout + faults.cut_stream
        return "cut_stream" if cut else ""

    def _left(self, ask: Ask, quota: Quota) -> Headers:
        return ask.house.limit_headers(quota.limits(ask.at_s, self._speed))

    def _rate_error(self, ask: Ask, refused: Refused, tokens: int, headers: Headers) -> ApiError:
        per_min = ask.model.requests_per_min if refused.what == "requests" else ask.model.tokens_per_min
        excess = Excess(
            model=ask.name,
            what=refused.what,
            per_min=per_min or 0.0,
            asked=1 if refused.what == "requests" else tokens,
            wait_s=refused.wait_s / self._speed,
        )
        return ask.house.over_limit(excess, headers)

    def _chain(self, name: str) -> "_Chain":
        if name not in self._chains:
            self._chains[name] = _Chain(f"{self._seed}:{name}")
        return self._chains[name]


class _Chain:
    """Good and bad times of one model. The n-th request meets the n-th state, whichever request that is."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._bad = False

    def fails(self, faults: Faults) -> bool:
        """Take one step; whether the request at this step is refused."""
        turn, error = self._random.random(), self._random.random()
        self._bad ^= turn < (faults.p_good if self._bad else faults.p_bad)
        return self._bad and error < faults.bad_error


def remember(table: "OrderedDict[Any, _V]", key: object, value: _V, most: int) -> None:
    """Keep `value`, as the newest of at most `most`."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > most:
        table.popitem(last=False)
