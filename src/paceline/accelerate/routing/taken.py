"""RouteTaken: where a call went and what happened on the way, for its span, the log and the error message."""

import msgspec


class FailedAttempt(msgspec.Struct, frozen=True):
    """One attempt that did not serve the caller."""

    where: str  # the deployment, else the provider
    model: str | None
    what: str  # a status, "upstream_timeout", "upstream_broken", "hedge lost", "breaker open"

    def __str__(self) -> str:
        return f"{self.where} {self.what}"


class RouteTaken(msgspec.Struct, kw_only=True):
    """Filled in by the dispatcher while a call is under way."""

    provider: str = ""  # the dialect of where it went last
    deployment: str | None = None  # None: the provider itself
    model: str | None = None  # that served, as the policy calls it; its name at a deployment may be another
    fallback: str | None = None  # the model that answered in place of the one asked for
    hedged: bool = False  # it was asked a second time for being late
    failed: list[FailedAttempt] = []
    wasted_usd: float = 0.0  # thought to be billed for attempts that were given up: their prompts, at full price
    wasted_unknown: bool = False  # something of it has no known price

    def story(self) -> str:
        """What failed, in order, for a message; "" when nothing did."""
        return ", ".join(str(attempt) for attempt in self.failed)
