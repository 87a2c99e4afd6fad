"""Rate limits as providers keep them: buckets that refill continuously."""

from paceline.testing.config import Model


class Bucket:
    """Allows `per_min` units a minute, `burst_s` worth of them at once. `speed` makes its minute shorter."""

    __slots__ = ("_at_s", "_level", "capacity", "per_min", "per_s")

    def __init__(self, per_min: float, burst_s: float, speed: float, now_s: float) -> None:
        self.per_min = per_min
        self.per_s = per_min / 60 * speed
        self.capacity = max(1.0, per_min / 60 * burst_s)
        self._level = self.capacity
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """Units there now."""
        return min(self.capacity, self._level + (now_s - self._at_s) * self.per_s)

    def wait_s(self, amount: float, now_s: float) -> float:
        """Wall seconds until `amount` is there; 0 when it is. What exceeds the capacity waits for a full bucket."""
        return max(0.0, (min(amount, self.capacity) - self.level(now_s)) / self.per_s)

    def take(self, amount: float, now_s: float) -> None:
        """Take, into debt if need be."""
        self._level = self.level(now_s) - amount
        self._at_s = now_s


class Quota:
    """The limits of one model for one key."""

    def __init__(self, model: Model, speed: float, now_s: float) -> None:
        def bucket(per_min: float | None) -> Bucket | None:
            return Bucket(per_min, model.burst_s, speed, now_s) if per_min else None

        self.requests = bucket(model.requests_per_min)
        self.tokens = bucket(model.tokens_per_min)
        self._speed = speed

    def admit(self, tokens: int, now_s: float, *, failed_count: bool) -> tuple[str, float] | None:
        """None when the request may pass; else which limit refuses it and the wall seconds to wait."""
        for name, bucket, amount in (("requests", self.requests, 1.0), ("tokens", self.tokens, float(tokens))):
            wait_s = bucket.wait_s(amount, now_s) if bucket else 0.0
            if wait_s > 0:
                if failed_count and self.requests:
                    self.requests.take(1.0, now_s)
                return name, wait_s
        if self.requests:
            self.requests.take(1.0, now_s)
        if self.tokens:
            self.tokens.take(float(tokens), now_s)
        return None

    def headers(self, now_s: float) -> list[tuple[bytes, bytes]]:
        """`x-ratelimit-*` as OpenAI sends them; limits are per minute of the provider, resets are Go durations."""
        found: list[tuple[bytes, bytes]] = []
        for name, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket:
                reset_s = bucket.wait_s(bucket.capacity, now_s)
                values = {
                    "limit": f"{bucket.per_min:.0f}",
                    "remaining": str(max(0, int(bucket.level(now_s)))),
                    "reset": go_duration(reset_s),
                }
                found += [(f"x-ratelimit-{what}-{name}".encode(), value.encode()) for what, value in values.items()]
        return found


def go_duration(seconds: float) -> str:
    """A duration as Go writes it: `12ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    shown = f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{int(minutes)}m{shown}" if minutes else shown
