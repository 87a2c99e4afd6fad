"""A figure with its interval, and an input with its range."""

import msgspec


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A projected figure: the value and the 90 % interval it is expected in, in the figure's own unit."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Estimate":
        """The same estimate in another unit; `factor` is positive."""
        return Estimate(value=self.value * factor, low=self.low * factor, high=self.high * factor)

    def holds(self, measured: float) -> bool:
        """True when `measured` lies in the interval."""
        return self.low <= measured <= self.high


class Range(msgspec.Struct, frozen=True):
    """An assumption somebody made: a value, and how far off it may be. Written as a number or `[low, high]`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            msg = f"a range needs low <= high; got [{self.low}, {self.high}]"
            raise ValueError(msg)

    @property
    def value(self) -> float:
        """The middle."""
        return (self.low + self.high) / 2

    @classmethod
    def parse(cls, raw: object) -> "Range":
        """Read a TOML number or two-element array. Raises ValueError for anything else."""
        if isinstance(raw, bool):
            pass
        elif isinstance(raw, int | float):
            return cls(float(raw), float(raw))
        elif isinstance(raw, list) and len(raw) == 2 and all(isinstance(x, int | float) for x in raw):
            return cls(float(raw[0]), float(raw[1]))
        msg = f"expected a number or [low, high]; got {raw!r}"
        raise ValueError(msg)
