"""What a tuning came to, in rows with sensible digits and in one JSON object."""

from pathlib import Path

import msgspec
import pytest

from paceline.model.change import Parallelise
from paceline.model.estimate import Estimate
from paceline.model.figures import Figures, Objective, ProjectedFigures
from paceline.model.finding import Evidence, Finding, Saving, Where
from paceline.model.projection import Projection
from paceline.model.tuning import PhaseResult, Probe, TuneResult
from paceline.tune import summary
from paceline.tune.proof import judge, projection_error


def about(value: float) -> Estimate:
    """An estimate a tenth to each side."""
    return Estimate(value=value, low=value * 0.9, high=value * 1.1)


BEFORE = Figures(requests=500, duration_s=150.0, p50_s=11.0, p95_s=76.84, mean_s=14.9, requests_per_s=3.31,
                 success_ratio=0.996, hit_ratio=0.4, cost_per_1000_usd=23.4, memory_mb=5712.3)  # fmt: skip
AFTER = Figures(requests=500, duration_s=60.0, p50_s=0.004, p95_s=4.83, mean_s=1.2, requests_per_s=8.6,
                success_ratio=1.0, hit_ratio=0.871, cost_per_1000_usd=4.2, memory_mb=812.0,
                quality_ratio=0.975)  # fmt: skip
SAID = ProjectedFigures(p50_s=about(0.004), p95_s=about(5.0), mean_s=about(1.3), requests_per_s=about(8.5),
                        success_ratio=about(1.0))  # fmt: skip
FOUND = Finding(
    rule="sequential_calls",
    title="retrieve and choose_tone run one after the other",
    where=Where(step="choose_tone", code="support/app.py:88 choose_tone"),
    evidence=Evidence(count=480, of=500),
    critical_path_s=1.9,
    saving=Saving(latency_s=1.9, cost_per_1000_usd=0.0),
    confidence=0.9,
    remedy="Start them together.",
    change=Parallelise(steps=["retrieve", "choose_tone"]),
)


@pytest.fixture
def result() -> TuneResult:
    phases = [
        PhaseResult(name="before", figures={"concurrent": BEFORE}, run="baseline"),
        PhaseResult(name="calls", figures={"concurrent": AFTER}, run="phase-1-calls",
                    projection=Projection(changes=[], figures=SAID)),
        PhaseResult(name="tokens", projection=Projection(changes=[], refusal="gpt-5 has no known pace")),
    ]  # fmt: skip
    objectives = [
        Objective(name="P95", metric="p95_s", op="<", target=8.0),
        Objective(name="hits", metric="hit_ratio", op=">", target=0.9, level="should"),
        Objective(name="cached", metric="cached_p95_s", op="<", target=0.1, level="stretch"),
    ]
    return TuneResult(
        name="support",
        target="workloads/support/paceline.toml",
        paceline="0.1.0",
        started_at="2026-11-21T10:00:00+00:00",
        speed=5.0,
        provider="simulated",
        scenario="concurrent",
        phases=phases,
        findings=[FOUND],
        objectives=judge(objectives, phases, "concurrent"),
        projection_error=projection_error(phases, "concurrent"),
        probes=[Probe(model="gpt-4o-mini", calls=12, ttft_p50_s=0.3, token_gap_s=0.01, cost_usd=0.0004)],
    )


def test_phase_rows_have_as_many_digits_as_mean_something(result: TuneResult) -> None:
    """Bare numbers under headings with units; what is not known is a dash, what was refused says so."""
    rows = summary.phase_rows(result)
    assert rows == [
        ["before", "–", "76.8", "11.0", "14.9", "3.31", "99.6", "40", "23.40", "5,712", "–"],
        ["calls", "5.00 (4.50-5.50)", "4.83", "0.004", "1.20", "8.60", "100", "87", "4.20", "812", "97.5"],
        ["tokens", "refused", *["–"] * 9],
    ]


def test_the_table_lines_up(result: TuneResult) -> None:
    """Every column is as wide as its widest cell, units under names, no trailing spaces."""
    lines = summary.table(summary.PHASE_HEADINGS, summary.phase_rows(result)).splitlines()
    assert lines[0].startswith("phase   P95 projected       P95    P50")
    assert lines[1].split() == ["s", "(90", "%", "interval)", "s", "s", "s", "per", "s", "%", "%", "$", "per", "1,000",
                                "MB", "%"]  # fmt: skip
    assert len({len(line) for line in lines[2:]}) == 1
    assert lines[3].index("76.8") + 4 == lines[4].index("4.83") + 4


def test_objectives_say_met_missed_or_not_known(result: TuneResult) -> None:
    """Targets and figures carry their units."""
    assert summary.objective_rows(result) == [
        ["P95", "must", "< 8.00 s", "76.8 s", "4.83 s", "yes"],
        ["hits", "should", "> 90 %", "40 %", "87 %", "no"],
        ["cached", "stretch", "< 100 ms", "not known", "not known", "not known"],
    ]
    assert [o.objective.name for o in result.missed("should")] == ["hits"]
    assert result.missed("must") == []


def test_findings_say_where_and_what_they_cost(result: TuneResult) -> None:
    """One line a finding, with the code line."""
    [line] = summary.finding_lines(result.findings)
    assert line == (
        "1. retrieve and choose_tone run one after the other — support/app.py:88 choose_tone; saves 1.90 s a request"
    )


def test_notes_tell_speed_probes_and_refusals(result: TuneResult) -> None:
    """Everything a reader must know to read the figures right."""
    speed, probe, refusal = summary.notes(result)
    assert speed.startswith("speed 5: times are at the provider's pace; the service's own CPU time counts 5 times")
    assert probe == "the pace of gpt-4o-mini was asked for with 12 calls, cost $0.0004"
    assert refusal == "tokens was not projected: gpt-5 has no known pace"


def test_a_processor_that_was_too_busy_is_named_with_the_speed_that_leaves_it_room(result: TuneResult) -> None:
    """The worst phase and how many; at real pace nothing slower is advised; below three quarters nothing is said."""

    def said(speed: float, *busy: float) -> list[str]:
        phases = [
            msgspec.structs.replace(
                phase, figures={"concurrent": msgspec.structs.replace(BEFORE, processor_busy_ratio=ratio)}
            )
            for phase, ratio in zip(result.phases, busy, strict=True)
        ]
        told = summary.notes(msgspec.structs.replace(result, speed=speed, phases=phases, probes=[]))
        return [note for note in told if "processor" in note]

    [note] = said(5.0, 0.76, 0.98, 0.5)
    assert note.startswith("the service's processor was 98% busy in calls and 75% or more in 2 phases: ")
    assert note.endswith("; --speed 3 leaves it room")
    [note] = said(1.0, 0.5, 0.8, 0.5)
    assert note.startswith("the service's processor was 80% busy in calls: ")
    assert "--speed" not in note
    assert said(5.0, 0.5, 0.73, 0.5) == []


def test_projection_error_is_one_sentence(result: TuneResult) -> None:
    """Medians, and how many intervals held the figure."""
    assert summary.error_line(result) == (
        "projected against measured, median of 1 phase: off by P50 0%, P95 4%, requests/s 1%; "
        "3 of 3 intervals held the figure"
    )


def test_the_object_has_what_was_promised(result: TuneResult) -> None:
    """Findings, phases, objectives, projection_error and report, as plain JSON."""
    told = msgspec.json.decode(msgspec.json.encode(summary.as_object(result, Path("tunes/x"))))
    assert {"rule", "where", "saving"} <= told["findings"][0].keys()
    before, calls, tokens = told["phases"]
    figures = {
        "p50_s",
        "p95_s",
        "mean_s",
        "requests_per_s",
        "success_ratio",
        "hit_ratio",
        "cost_per_1000_usd",
        "memory_mb",
    }
    assert before["name"] == "before"
    assert before["projected"] is None
    assert figures <= before["measured"].keys()
    assert calls["projected"].keys() == figures
    assert calls["projected"]["p95_s"] == {"value": 5.0, "low": 4.5, "high": 5.5}
    assert (tokens["projected"], tokens["measured"]) == (None, None)
    assert tokens["refusal"] == "gpt-5 has no known pace"
    assert {"name", "level", "target", "before", "after", "met"} <= told["objectives"][0].keys()
    assert told["projection_error"]["p95"] == pytest.approx(5.0 / 4.83 - 1)
    assert told["report"] is None
