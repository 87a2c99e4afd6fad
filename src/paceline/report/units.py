"""How figures are written for people: unit attached, as many digits as mean something."""

from paceline.model.estimate import Estimate

UNKNOWN = "–"


def seconds(value: float | None) -> str:
    """`76.8 s`, `2.41 s`, `85 ms`, `0.4 ms`."""
    if value is None:
        return UNKNOWN
    if value >= 99.95:
        return f"{value:,.0f} s"
    if value >= 9.995:
        return f"{value:.1f} s"
    if value >= 0.9995:
        return f"{value:.2f} s"
    ms = value * 1000
    return f"{ms:.0f} ms" if ms >= 9.95 else f"{ms:.1f} ms"


def percent(value: float | None) -> str:
    """A ratio as `99.6 %`, `40 %`."""
    if value is None:
        return UNKNOWN
    shown = value * 100
    return f"{shown:.1f} %" if 0 < shown < 10 or 90 < shown < 100 else f"{shown:.0f} %"


def dollars(value: float | None) -> str:
    """`$12.40`, `$0.031`."""
    if value is None:
        return UNKNOWN
    return f"${value:,.2f}" if value >= 0.1 or value == 0 else f"${value:.2g}"


def megabytes(value: float | None) -> str:
    """`412 MB`, `5.7 GB`."""
    if value is None:
        return UNKNOWN
    return f"{value / 1000:.1f} GB" if value >= 1000 else f"{value:.0f} MB"


def rate(value: float | None) -> str:
    """`3.3/s`, `41/s`."""
    if value is None:
        return UNKNOWN
    return f"{value:.1f}/s" if value < 99.95 else f"{value:,.0f}/s"


def ratio_error(value: float | None) -> str:
    """A signed relative error: `+4 %`, `-11 %`."""
    return UNKNOWN if value is None else f"{value * 100:+.0f} %"


def clock(value_s: float) -> str:
    """Since a start: `7.2 s`, `3:07`, `1:02:03`."""
    if value_s < 60:
        return f"{value_s:.1f} s"
    whole = round(value_s)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_BY_SUFFIX = (
    ("_per_1000_usd", dollars),
    ("_mb", megabytes),
    ("_mb_per_1000", megabytes),
    ("_per_s", rate),
    ("_ratio", percent),
    ("_s", seconds),
)


def figure(metric: str, value: float | str | None) -> str:
    """A figure of `Figures`, by the unit its name ends in."""
    if value is None:
        return "not known"
    if isinstance(value, str):
        return value
    for suffix, write in _BY_SUFFIX:
        if metric.endswith(suffix):
            return write(value)
    return f"{value:g}"


def estimate(metric: str, value: Estimate | None) -> str:
    """`2.4 s (2.1 s to 2.8 s)`."""
    if value is None:
        return UNKNOWN
    return f"{figure(metric, value.value)} ({figure(metric, value.low)} to {figure(metric, value.high)})"


def fact(value: float | str) -> str:
    """A named number of a finding: three digits that count, thousands set apart."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"
