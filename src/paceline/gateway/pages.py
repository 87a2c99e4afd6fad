"""The gateway's own pages, and its refusals: health, readiness, metrics, costs."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from paceline.accelerate.cache import Selection
from paceline.gateway.access_log import AccessLine, AccessLog, utc
from paceline.gateway.invalidation import INVALIDATE, Dropped, meant
from paceline.gateway.keys.door import Door
from paceline.gateway.keys.quota import Refusal
from paceline.gateway.metrics.counts import Metrics
from paceline.gateway.metrics.shared import SharedMetrics
from paceline.gateway.metrics.text import CONTENT_TYPE, CostRow, cost_rows, label, prometheus_text
from paceline.wire.dialects import dialect_for
from paceline.wire.http import HttpRequest, Reply

METRICS = "/metrics"
_JSON = (b"content-type", b"application/json")
_FRESH = (b"cache-control", b"no-store")


class Costs(msgspec.Struct, kw_only=True):
    """Body of `/-/costs`: since the gateway started, over all its processes."""

    since: str
    calls: int
    unpriced_calls: int
    cost_usd: float
    saved_usd: float
    rows: Sequence[CostRow]


class Pages:
    """Answers everything that is not for a provider.

    Args:
        shared: The counts of all processes.
        state: What this process holds now.
        more: Further pages by their path, what each gives as JSON.
        drop: Drops kept answers.
        log: Where refusals are written down, too.
    """

    def __init__(
        self,
        shared: SharedMetrics | None = None,
        *,
        state: Callable[[], Mapping[str, Any]] = dict,
        more: Mapping[str, Callable[[], Any]] | None = None,
        drop: Callable[[Selection], Awaitable[Dropped]] | None = None,
        log: AccessLog | None = None,
        started_ns: int | None = None,
    ) -> None:
        self._shared = shared or SharedMetrics(Metrics())
        self._state = state
        self._more = more or {}
        self._drop = drop
        self._log = log
        self._since = utc(time.time_ns() if started_ns is None else started_ns)
        self.door: Door | None = None
        self.ready = True  # False: it finishes what it has and wants no more

    def answer(self, request: HttpRequest) -> Reply | Awaitable[Reply]:
        """A page, or the refusal to show it."""
        path = request.path
        if path == "/-/ready":
            return _json(200 if self.ready else 503, {"status": "ready" if self.ready else "draining"})
        if path == INVALIDATE and self._drop is not None:
            return self._invalidate(request, self._drop)
        refusal = self.door.unfit_for_pages(request) if self.door is not None else None
        if path == "/-/health":  # whoever may not see the rest still learns that it lives
            return _json(200, {"status": "ok", **({} if refusal else self._state())})
        if refusal is not None:
            return self.refuse(request, refusal)
        if path == METRICS:
            return Reply(200, [(b"content-type", CONTENT_TYPE), _FRESH], prometheus_text(self._shared.whole()))
        if path == "/-/costs":
            return _json(200, self._costs())
        if path in self._more:
            return _json(200, self._more[path]())
        return Reply(404, [_JSON], _error_body(request, 404, f"no such page: {path}", None))

    def _invalidate(
        self, request: HttpRequest, drop: Callable[[Selection], Awaitable[Dropped]]
    ) -> Reply | Awaitable[Reply]:
        caller = self.door.whose_answers(request) if self.door is not None else None
        if isinstance(caller, Refusal):
            return self.refuse(request, caller)
        said = dict(request.headers).get(b"content-type", b"").partition(b";")[0].strip().lower()
        # The type is asked for because a web page elsewhere cannot send it without asking first (CORS).
        if request.method != "POST" or said != _JSON[1]:
            message = f"{INVALIDATE} takes a POST of application/json"
            return Reply(405 if request.method != "POST" else 415, [_JSON], _error_body(request, 405, message, None))
        try:
            selection = meant(request.body, self.door, caller.tenant if caller is not None else None)
        except (ValueError, TypeError) as error:
            return Reply(400, [_JSON], _error_body(request, 400, f"not what {INVALIDATE} takes: {error}", None))

        async def done() -> Reply:
            return _json(200, await drop(selection))

        return done()

    def refuse(self, request: HttpRequest, refusal: Refusal) -> Reply:
        """Say no as the caller's provider would, and count it."""
        caller = self.door.caller_of(request) if self.door is not None else None
        name = caller.name if caller is not None else ""
        status = label("status", str(refusal.status))
        labels = f"{status},{label('code', refusal.code)},{label('key', name)}"
        self._shared.metrics.count("paceline_refusals_total", labels)
        if self._log is not None:
            self._log.refused(
                AccessLine(
                    time=utc(time.time_ns()),
                    key=name,
                    tenant=caller.key.owner if caller is not None else "",
                    method=request.method,
                    path=request.path,
                    status=refusal.status,
                    outcome="refused",
                    error=refusal.code,
                )
            )
        headers = [_JSON]
        if refusal.status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="paceline"'))
        if refusal.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, -int(-refusal.retry_after_s // 1))))
        if refusal.code == "insufficient_quota":  # the official SDKs would try twice more, in vain
            headers.append((b"x-should-retry", b"false"))
        body = _error_body(request, refusal.status, refusal.message, refusal.code, refusal.retry_after_s)
        return Reply(refusal.status, headers, body)

    def _costs(self) -> Costs:
        rows = cost_rows(self._shared.whole())
        return Costs(
            since=self._since,
            calls=sum(row.calls for row in rows),
            unpriced_calls=sum(row.unpriced_calls for row in rows),
            cost_usd=sum(row.cost_usd for row in rows),
            saved_usd=sum(row.saved_usd for row in rows),
            rows=rows,
        )


def _json(status: int, value: object) -> Reply:
    return Reply(status, [_JSON, _FRESH], msgspec.json.encode(value))


def _error_body(
    request: HttpRequest, status: int, message: str, code: str | None, retry_after_s: float | None = None
) -> bytes:
    dialect = dialect_for(request.path, request.headers)
    return dialect.error_body(status, message, code, retry_after_s=retry_after_s)
