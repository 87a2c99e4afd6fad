"""Objectives as gates: what is asked, what is judged, and what CI is told."""

import argparse
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from paceline.cli import load_gates
from paceline.load.gates import MET, MISSED, NOT_KNOWN, Gate, judge, parse_objective
from paceline.load.junit import junit_xml
from paceline.model.figures import METRICS, Figures
from paceline.model.request import Request
from paceline.model.run import ScenarioInfo
from paceline.trace.figures import figures_of

FIGURES = Figures(
    requests=600, duration_s=60.0, p95_s=2.412, p95_interval_s=(2.2, 2.63), success_ratio=0.99, memory_verdict="leak"
)


@pytest.mark.parametrize(
    ("text", "metric", "op", "target", "level", "scenario"),
    [
        ("p95_s<2", "p95_s", "<", 2.0, "must", None),
        (" should  p95_s <= 2.5 ", "p95_s", "<=", 2.5, "should", None),
        ("concurrent: success_ratio>=99%", "success_ratio", ">=", 0.99, "must", "concurrent"),
        ("should a-b.c:hit_ratio > 40 %", "hit_ratio", ">", 0.4, "should", "a-b.c"),
        ("memory_verdict!=leak", "memory_verdict", "!=", "leak", "must", None),
        ("p50_s<1e-3", "p50_s", "<", 0.001, "must", None),
    ],
)
def test_an_objective_reads_as_it_is_said(
    text: str, metric: str, op: str, target: object, level: str, scenario: str | None
) -> None:
    found = parse_objective(text)
    assert (found.metric, found.op, found.target, found.level, found.scenario) == (metric, op, target, level, scenario)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fast please", "looks like"),
        ("p96_s<1", "unknown metric"),
        ("p95_s<soon", "expected a number"),
        ("memory_verdict<1", "== or !="),
        ("errors==0", "unknown metric"),
        ("p95_interval_s<1", "unknown metric"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_is_sent(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_objective(text)


def test_every_single_figure_can_be_asked_for() -> None:
    for metric in METRICS:
        parse_objective(f"{metric}==steady" if metric == "memory_verdict" else f"{metric}<1")


def gates(*texts: str, **figures: Figures) -> list[Gate]:
    return judge([parse_objective(text) for text in texts], figures or {"main": FIGURES})


def test_met_missed_and_not_known_are_told_apart() -> None:
    """Only a must closes the gate; a figure nobody recorded is not one that was met."""
    found = gates("p95_s<3", "p95_s<2", "cost_per_1000_usd<1", "should p95_s<2", "memory_verdict!=leak")
    assert [g.outcome for g in found] == [MET, MISSED, NOT_KNOWN, MISSED, MISSED]
    assert [g.failed for g in found] == [False, True, True, False, True]
    assert found[1].sentence == "p95_s < 2: missed with 2.412 (2.2 to 2.63, n=600)"
    assert found[2].sentence == "cost_per_1000_usd < 1: not known (n=600)"
    assert found[4].sentence == "memory_verdict != leak: missed with leak (n=600)"


def test_a_target_within_the_interval_is_called_close() -> None:
    assert [g.is_close for g in gates("p95_s<2.5", "p95_s<3", "memory_verdict==leak")] == [True, False, False]


def test_objectives_without_a_scenario_are_put_to_each_and_the_others_to_theirs() -> None:
    quick = Figures(requests=1, duration_s=1.0, p95_s=0.1)
    found = gates("p95_s<2", "quick: p95_s<0.05", "gone: p95_s<1", main=FIGURES, quick=quick)
    assert [(g.scenario, g.outcome) for g in found] == [
        ("main", MISSED), ("quick", MET), ("quick", MISSED), ("gone", NOT_KNOWN)
    ]  # fmt: skip
    assert found[3].failed


def test_junit_has_a_case_for_each_objective() -> None:
    """Failures carry what was measured; a should that was missed is skipped, and text of any kind stays XML."""
    found = gates("p95_s<3", "p95_s<2", "should p95_s<2")
    root = ET.fromstring(junit_xml('a <b> & "c"\x00', found, {"main": 60.0}))  # noqa: S314 - our own
    assert root.attrib == {"name": 'a <b> & "c"\ufffd', "tests": "3", "failures": "1", "skipped": "1"}
    (suite,) = root
    assert suite.attrib["name"] == "main"
    assert suite.attrib["time"] == "60.000"
    assert [(case.attrib["name"], case[0].tag) for case in suite] == [
        ("p95_s < 3", "system-out"), ("p95_s < 2", "failure"), ("p95_s < 2", "skipped")
    ]  # fmt: skip
    assert suite[1][0].attrib["message"] == "p95_s < 2: missed with 2.412 (2.2 to 2.63, n=600)"
    assert suite[1][0].attrib["type"] == "missed"


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    load_gates.add_arguments(parser)
    parser.set_defaults(json=False, name="demo")
    return parser.parse_args(words)


def judge_driven(args: argparse.Namespace) -> int:
    """The outcome over 100 requests, each took 0.01 s longer than the one before; one in ten failed."""
    requests = [
        Request(index=i, scenario="demo", endpoint="GET /", trace_id=f"{i}", intended_s=float(i), started_s=float(i),
                ended_s=i + 0.01 * (i + 1), status=503 if i % 10 == 0 else 200, error=None if i % 10 else "status")
        for i in range(100)
    ]  # fmt: skip
    info = ScenarioInfo(name="demo", model="open", rate_per_s=1.0)
    return load_gates.judge(args, [info], {"demo": figures_of(requests, [], [], bounds=load_gates.bounds_asked(args))})


def test_the_command_prints_every_gate_and_names_the_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, junit = tmp_path / "summary.md", tmp_path / "gates.xml"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    words = ("--objective", "p95_s<0.5", "--objective", "success_ratio>=90%", "--objective", "should p50_s<0.1")
    assert judge_driven(options(*words, "--junit", str(junit), "--github-summary")) == 1
    said = capsys.readouterr()
    assert "objective p95_s < 0.5: missed with 0.96 (" in said.err
    assert said.err.count("\n") == 1
    assert said.out.count("missed") == 2
    assert ET.parse(junit).getroot().attrib["failures"] == "1"  # noqa: S314 - our own
    page = summary.read_text()
    assert page.startswith("before\n### paceline load: demo")
    assert "| ❌ | demo | must | p95_s &lt; 0.5 | 960 ms (" in page
    assert "| ✅ | demo | must | success_ratio &gt;=" not in page  # only what would start a tag is escaped
    assert "| ✅ | demo | must | success_ratio >= 90% | 90 % | met |" in page


def test_gates_that_are_met_are_fine_and_none_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert judge_driven(options("--objective", "p95_s<5")) == 0
    capsys.readouterr()
    assert judge_driven(options()) == 0
    assert capsys.readouterr() == ("", "")


def test_goodput_is_of_the_bounds_asked_or_of_the_objectives(capsys: pytest.CaptureFixture[str]) -> None:
    """90 of 100 succeeded, and of those 45 within half a second: every tenth, from the first, had failed."""
    assert judge_driven(options("--goodput", "latency_s<0.505")) == 0
    assert "demo: goodput 45 % of requests" in capsys.readouterr().out
    assert judge_driven(options("--objective", "p95_s<0.505", "--objective", "goodput_ratio>=50%")) == 1
    said = capsys.readouterr()
    assert "answered with latency_s <= 0.505" in said.out
    assert "goodput_ratio >= 50%: missed with 0.45 (n=100)" in said.err


def test_wrong_options_are_refused_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    for words, says in (
        (["--objective", "x<1"], "unknown metric 'x'"),
        (["--github-summary"], "GITHUB_STEP_SUMMARY"),
        (["--goodput", "p95_s<1"], "a bound is one of"),
    ):
        with pytest.raises(SystemExit) as exit_:
            options(*words)
        assert exit_.value.code == 2
        assert says in capsys.readouterr().err
