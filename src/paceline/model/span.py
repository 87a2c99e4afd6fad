"""Span: one timed piece of work, as stored in spans-*.parquet."""

import msgspec

# What a span timed. Open set: unknown kinds are kept and shown, never rejected.
HTTP_SERVER = "http.server"
HTTP_CLIENT = "http.client"
LLM = "llm"
EMBEDDING = "embedding"
DB = "db"
CACHE = "cache"
QUEUE = "queue"
TASK = "task"
STEP = "step"
TOOL = "tool"

AttributeValue = str | int | float | bool | list[str]


class Span(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One timed piece of work. Ids are lower-case hex (32 and 16 digits) as in W3C Trace Context.

    `wait_ns` is the part of `duration_ns` spent in a pool, queue or rate limit before service began.
    """

    trace_id: str
    span_id: str
    parent_id: str | None = None
    name: str
    kind: str
    service: str = ""  # which process wrote it: "app", "gateway"
    start_ns: int  # Unix time
    duration_ns: int
    wait_ns: int = 0
    cpu_ns: int | None = None  # CPU time of the thread, where the span began and ended on one thread
    resource: str | None = None  # what `wait_ns` waited for: "provider:gpt-4o", "gateway:concurrency"
    status: str = "ok"  # "ok" or "error"
    error: str | None = None  # exception type or HTTP status, when status is "error"
    code: str | None = None  # the caller's own line: "support/app.py:88 classify_intent"
    fingerprint: str | None = None  # prompt template, normalised SQL or URL pattern; the same work has the same one
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cost_usd: float | None = None  # None: not known (never zero for "unknown")
    cache: str | None = None  # "hit", "miss", "join" (shared a call in flight), "bypass"
    attributes: dict[str, AttributeValue] = {}

    @property
    def end_ns(self) -> int:
        """Unix time at which it ended."""
        return self.start_ns + self.duration_ns

    @property
    def duration_s(self) -> float:
        """Length in seconds, waiting included."""
        return self.duration_ns / 1e9

    @property
    def step(self) -> str | None:
        """The function that made the call: the last word of `code`."""
        return self.code.rsplit(" ", 1)[-1] if self.code else None


# Attribute names. OpenTelemetry's where it has one; `paceline.` where it has none.
HTTP_STATUS = "http.response.status_code"
HTTP_ROUTE = "http.route"
HTTP_METHOD = "http.request.method"
URL = "url.full"  # without query string
URL_PATH = "url.path"
STREAM = "gen_ai.request.stream"
TTFT_S = "gen_ai.response.time_to_first_chunk"  # seconds
PROVIDER = "gen_ai.provider.name"
ATTEMPT = "http.request.resend_count"
RETRY_AFTER_S = "paceline.retry_after_s"
LIMIT_REQUESTS_PER_MIN = "paceline.limit.requests_per_min"  # from the provider's reply headers
LIMIT_TOKENS_PER_MIN = "paceline.limit.tokens_per_min"
PROMPT_HASH = "paceline.prompt.hash"  # same hash: the very same call
PROMPT_SYSTEM_TOKENS = "paceline.prompt.system_tokens"  # estimates, split by role
PROMPT_HISTORY_TOKENS = "paceline.prompt.history_tokens"
PROMPT_USER_TOKENS = "paceline.prompt.user_tokens"
USES = "paceline.uses"  # ids of earlier spans of the trace whose output appears in this call's input
USED_IN_RESPONSE = "paceline.used_in_response"  # ids of spans whose output appears in the HTTP answer (on http.server)
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
CALLERS = "paceline.callers"  # the application's own frames, innermost first: ["support/app.py:88 classify", ...]
DB_SYSTEM = "db.system.name"
DB_COLLECTION = "db.collection.name"
DB_OPERATION = "db.operation.name"
DB_RESULTS = "db.response.returned_rows"
THREAD = "thread.id"
