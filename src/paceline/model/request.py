"""Request: one attempted load request, as stored in requests-*.parquet."""

import msgspec


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempted request. Times are seconds since the start of the run, on the run's clock."""

    index: int  # position in the scenario's sequence
    scenario: str
    endpoint: str  # "POST /chat"
    trace_id: str  # sent as W3C traceparent, so spans can be joined
    intended_s: float  # when the schedule wanted it sent
    started_s: float  # when it was really sent
    first_byte_s: float | None = None  # None: it ended before any body byte
    ended_s: float
    status: int | None = None  # None: no answer
    error: str | None = None  # "timeout", "connection", "status", "check"; None is success
    request_bytes: int = 0
    response_bytes: int = 0
    cache: str | None = None  # "hit", "miss", "join" from the answer's cache header; None: it has none
    key: str = ""  # hash of the request body: the same key asks the very same thing
    text_key: str = ""  # hash of its text, case, white space and punctuation ignored
    user: int | None = None  # which simulated user, in closed scenarios
    failed_check: str | None = None  # which one, where the error is "check"
    gaps_s: list[float] = []  # time between streamed events that carry tokens; empty when it did not stream
    first_token_s: float | None = None  # when the first such event came; None: it did not stream
    output_tokens: int | None = None  # as the stream stated them
    cost_usd: float | None = None  # as a header of the answer stated it

    @property
    def latency_s(self) -> float:
        """Seconds from the intended start, so waiting behind a stall is counted."""
        return self.ended_s - self.intended_s

    @property
    def service_s(self) -> float:
        """Seconds from the real send."""
        return self.ended_s - self.started_s

    @property
    def ok(self) -> bool:
        """True when it was answered and passed its checks."""
        return self.error is None


class ResourceSample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reading of a process tree, as stored in resources-*.parquet."""

    at_s: float  # since the start of the run
    service: str  # "app", "gateway", "generator"
    processes: int
    threads: int
    cpu_s: float  # user + system CPU since the service started, whole tree, ended children included where known
    rss_bytes: int
    descriptors: int | None = None
    sockets: int | None = None  # of the descriptors
    disk_read_bytes: int | None = None  # from and to storage, since the service started; the page cache is not storage
    disk_write_bytes: int | None = None
    received_bytes: int | None = None  # of its network namespace; None where it shares ours
    sent_bytes: int | None = None
