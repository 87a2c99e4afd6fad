"""App: what a baseline run says about an application, in the form the simulation uses. All times in seconds."""

from dataclasses import dataclass, field

from paceline.model.figures import Figures

Pace = tuple[float, float]  # time to the first token, time for each token after it
PoolKey = tuple[str, str]  # step, model


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One logical call of a recorded request, with the application's own time in front of it.

    It starts when the works at `after` (positions in the request) have ended, spends `cpu_s` on the application's
    processor and `delay_s` elsewhere, then asks its model or store.
    """

    step: str
    names: frozenset[str]  # what a change may call it: its step and the functions around it
    after: tuple[int, ...] = ()
    uses: frozenset[int] = frozenset()  # positions whose output appears in its input
    awaited: bool = True  # the answer waits for it
    after_answer: bool = False  # it starts when the answer is sent
    cpu_s: float = 0.0
    delay_s: float = 0.0
    fault_s: float = 0.0  # attempts that failed for other reasons than the provider's limit, and the pauses after them
    service_s: float | None = None  # None: never served, drawn from `pool`
    model: str | None = None  # None: not a call to a model provider
    pool: PoolKey | None = None  # whose paces its service is drawn from; None: `service_s` as recorded
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float | None = 0.0  # as recorded; None: not known
    priced_as: tuple[str, int, int, int] | None = None  # model and tokens that `cost_usd` was paid for
    prompt: str | None = None
    scaled_by: tuple[int, ...] = ()  # changes whose ratios apply, by position


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One recorded request that was really answered (not from a cache), to be played again."""

    key: str
    text_key: str
    works: tuple[Work, ...]
    tail_cpu_s: float  # after the last awaited call
    tail_delay_s: float
    ok: bool  # False: it ended in an error that more speed would not have prevented


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of the load: what it asks and, in open loads, when after the first one."""

    key: str
    text_key: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The load that was driven: `users` in a closed loop, or None and the arrivals as recorded."""

    asked: list[Asked]
    users: int | None
    ramp_s: float
    think_s: float
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """A model's rate limits as token buckets; None: no such limit known."""

    requests_per_min: float | None = None
    tokens_per_min: float | None = None
    burst_requests: float = 0.0  # bucket sizes
    burst_tokens: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """What the application does when the provider says 429."""

    refused_s: list[float]  # how long a refusal takes
    pauses_s: list[list[float]]  # after the 1st, 2nd, ... refusal
    growth: float  # of the pause, beyond what was seen
    attempts: int | None  # then it gives up; None: never seen giving up
    fatal: bool  # giving up fails the request


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The application's own answer cache as the recording shows it."""

    by_text: bool
    hit_share: float  # of the requests whose answer had been given before
    shares_flights: bool
    warm: frozenset[str]  # keys that hit before they were answered once in this scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """All the simulation knows of the baseline."""

    templates: list[Template]
    alike: float  # chance that a request plays a template of the same question rather than any
    load: Load
    paces: dict[PoolKey, list[Pace]]  # per step and model
    prefill_s: dict[str, float]  # per model: time to first token added by each input token
    quotas: dict[str, Quota]
    queued: bool  # the gateway already absorbs the provider's refusals
    retries: Retries
    kept: Kept | None
    hits_s: list[float]  # recorded answers from the cache: time beyond `hit_cpu_s`
    hit_cpu_s: float
    refused_cpu_s: float  # of an attempt that the provider's limit turned away
    cores: int  # that the application's Python can use at once; 0: CPU use was not recorded
    slice_s: float  # of processor time before the next in turn
    workers: int | None  # requests it works on at once, where it never did more although more waited
    mb_per_request: float | None  # memory each request in flight holds
    measured: Figures
    assumptions: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Every name a change may use for a step, steps before the functions around them."""
        steps = {w.step for t in self.templates for w in t.works}
        around = {n for t in self.templates for w in t.works for n in w.names}
        return sorted(steps) + sorted(around - steps)
