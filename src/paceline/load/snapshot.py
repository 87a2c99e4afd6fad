"""Snapshot: where a scenario under way stands, as counts since its start; two of them give what happened between."""

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from paceline.stats.histogram import Histogram


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Where a scenario stands. `elapsed_s` and `duration_s` are at the provider's pace, everything else is wall time.

    Whoever made it has copied the histograms: it does not change.
    """

    scenario: str
    step: str = ""  # of what it is part, in words: "scenario 2 of 3", "knee trial 4: 40/s"
    speed: float = 1.0
    elapsed_s: float
    duration_s: float | None = None  # None: bounded by requests
    requests: int | None = None  # None: bounded by time
    due: int | None = None  # requests that the schedule wanted until now; None where users set the pace
    sent: int
    done: int
    failures: dict[str, int] = {}  # how often each kind: "status 503", "timeout", "check contains ..."
    users: int | None = None  # at work now; None where there are none
    hits: int = 0  # answers from a cache, by their header
    misses: int = 0
    tokens: int = 0  # of streamed answers that ended
    latencies: Histogram = msgspec.field(default_factory=Histogram)
    first_tokens: Histogram = msgspec.field(default_factory=Histogram)
    lag: Histogram = msgspec.field(default_factory=Histogram)
    cpu_s: tuple[float, ...] = ()  # CPU time of each generator process

    @property
    def errors(self) -> int:
        """Requests that failed."""
        return sum(self.failures.values())

    @property
    def in_flight(self) -> int:
        """Sent and not answered."""
        return self.sent - self.done

    def quantile_s(self, q: float) -> float | None:
        """Of all latencies so far, at the provider's pace."""
        found = self.latencies.quantile(q)
        return None if found is None else found * self.speed

    def encode(self) -> bytes:
        """As JSON, for another process."""
        return _encoder.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "Snapshot":
        """What `encode` gave. Raises ValueError for anything else."""
        return _decoder.decode(data)


def in_step(step: str, tell: Callable[[Snapshot], None]) -> Callable[[Snapshot], None]:
    """`tell`, with snapshots that say which step of something larger they belong to."""
    return lambda snapshot: tell(msgspec.structs.replace(snapshot, step=step))


def together(snapshots: Sequence[Snapshot]) -> Snapshot:
    """One snapshot for all processes of a scenario; at least one."""
    first = snapshots[0]
    users = [s.users for s in snapshots if s.users is not None]
    due = [s.due for s in snapshots if s.due is not None]
    return msgspec.structs.replace(
        first,
        elapsed_s=max(s.elapsed_s for s in snapshots),
        due=sum(due) if due else None,
        sent=sum(s.sent for s in snapshots),
        done=sum(s.done for s in snapshots),
        failures=dict(sum((Counter(s.failures) for s in snapshots), Counter[str]())),
        users=sum(users) if users else None,
        hits=sum(s.hits for s in snapshots),
        misses=sum(s.misses for s in snapshots),
        tokens=sum(s.tokens for s in snapshots),
        latencies=Histogram.merged(s.latencies for s in snapshots),
        first_tokens=Histogram.merged(s.first_tokens for s in snapshots),
        lag=Histogram.merged(s.lag for s in snapshots),
        cpu_s=tuple(cpu_s for s in snapshots for cpu_s in s.cpu_s),
    )


def _save(value: object) -> object:
    if isinstance(value, Histogram):
        return msgspec.Raw(value.encode())
    raise NotImplementedError


def _load(kind: type, value: object) -> object:
    if kind is Histogram:
        return Histogram.decode(msgspec.json.encode(value))
    raise NotImplementedError


_encoder = msgspec.json.Encoder(enc_hook=_save)
_decoder = msgspec.json.Decoder(Snapshot, dec_hook=_load)
