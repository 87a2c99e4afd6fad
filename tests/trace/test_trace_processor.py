"""Cores an application can use, and how busy they were."""

import pytest

from paceline.model.request import ResourceSample
from paceline.trace.processor import busy_ratio, cores_of


def samples(*cpu_s: float) -> list[ResourceSample]:
    """One a second, with the processor seconds used so far."""
    return [
        ResourceSample(at_s=float(second), service="app", cpu_s=used_s, rss_bytes=1, processes=1, threads=1)
        for second, used_s in enumerate(cpu_s)
    ]


def test_one_interpreter_has_one_core_however_busy() -> None:
    """What its lock and the sampler's own times add above one core is no second core."""
    assert cores_of(samples(0.0, 1.1, 2.2, 3.3)) == 1
    assert busy_ratio(samples(0.0, 0.5, 1.0, 1.5)) == pytest.approx(0.5)


def test_several_processes_have_as_many_cores_as_they_once_used() -> None:
    """The busiest tenth counts, so that a quiet run of four workers is not one busy core."""
    used = samples(0.0, *[0.1] * 8, 3.9, 7.8)
    assert cores_of(used) == 4
    assert busy_ratio(used) == pytest.approx(7.8 / 10 / 4)


def test_too_few_samples_tell_nothing() -> None:
    """None is not zero."""
    assert busy_ratio([]) is None
    assert busy_ratio(samples(1.0)) is None
    assert cores_of([]) == 1
