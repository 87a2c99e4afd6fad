"""Explain where a run lost its time and money: causes with evidence, code line, worth and remedy.

examples:
  paceline diagnose .paceline/runs/support-20261121T101500
  paceline diagnose RUN --scenario concurrent --json
"""

import argparse
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from paceline.errors import ConfigError, InputError

if TYPE_CHECKING:
    from paceline.model.finding import Finding
    from paceline.store.folder import RunFolder
    from paceline.trace.data import RunData

_LABEL = 12  # columns
_UNITS = ("_usd", "_ratio", "_mb", "_s")  # of fact names; the value is written with its unit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("folder", metavar="RUN", type=Path, help="a run folder that record, load or tune wrote")
    parser.add_argument("--scenario", metavar="NAME", help="only this scenario (default: all requests of the run)")
    parser.add_argument("--salvage", action="store_true", help="leave damaged parts of a run out instead of refusing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Read, diagnose, print. Exit code 0 whatever is found."""
    from paceline.diagnose import diagnose
    from paceline.store.folder import open_run

    folder = open_run(args.folder, salvage=args.salvage)
    data = _read(folder, args.scenario)
    findings = diagnose(data)
    if args.json:
        record = {
            "run": data.info.id,
            "scenario": args.scenario,
            "requests": len(data.requests),
            "spans": len(data.spans),
            "findings": findings,
        }
        print(msgspec.json.encode(record).decode())
        return 0
    for note in _notes(data):
        print(f"paceline diagnose: {note}", file=sys.stderr)
    width = min(120, max(60, shutil.get_terminal_size().columns))
    print(_heading(data, findings))
    for number, finding in enumerate(findings, 1):
        print("\n" + "\n".join(_lines(number, finding, width)))
    print(f"\nnext: paceline report {args.folder}", file=sys.stderr)
    return 0


def _read(folder: "RunFolder", scenario: str | None) -> "RunData":
    """The run in memory. Raises InputError when there is nothing in it, ConfigError for an unknown scenario."""
    from paceline.trace.data import RunData

    data = RunData(folder.info, folder.requests(), folder.spans(), folder.resources())
    if not data.requests and not data.spans:
        msg = (
            f"{folder.path} holds neither requests nor spans, so there is nothing to diagnose: "
            "drive some load while it is recorded"
        )
        raise InputError(msg, path=folder.path)
    if scenario is None:
        return data
    try:
        return data.scenario(scenario)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _notes(data: "RunData") -> list[str]:
    """What the reader should know about the recording."""
    notes = []
    if data.info.state != "complete":
        notes.append(f"the run is {data.info.state}: {data.info.reason or 'what was written so far is diagnosed'}")
    if not data.spans:
        notes.append("no spans were recorded, so only memory and threads can be judged; use `paceline record`")
    elif not data.requests:
        notes.append("no load was driven: savings are a mean over the requests the application served")
    return notes


def _heading(data: "RunData", findings: list["Finding"]) -> str:
    if not findings:
        served = f"{len(data.requests):,} requests" if data.requests else f"{len(data.spans):,} spans"
        return f"no cause of lost time or money found in {served}"
    noun = "cause" if len(findings) == 1 else "causes"
    return f"{len(findings)} {noun} of lost time or money in {data.info.name}, each saving for itself alone"


def _lines(number: int, finding: "Finding", width: int) -> list[str]:
    """One finding as a block of labelled lines."""
    from paceline.model.change import describe

    where, evidence = finding.where, finding.evidence
    place = [where.code or where.step, where.endpoint, where.model]
    rows = {
        "where": "  ".join(p for p in place if p) or "the service as a whole",
        "evidence": f"{evidence.count:,} of {evidence.of:,} requests; " + ", ".join(_facts(finding)),
        "saves": _saves(finding),
        "confidence": f"{finding.confidence:.0%} ({finding.rule})",
        "remedy": finding.remedy,
    }
    if finding.change is not None:
        rows["change"] = describe(finding.change)
    if evidence.span_ids:
        rows["spans"] = " ".join(evidence.span_ids[:3]) + (" ..." if len(evidence.span_ids) > 3 else "")
    block = textwrap.wrap(finding.title, width, initial_indent=f"{number:2}. ", subsequent_indent="    ")
    for label, text in rows.items():
        indent = " " * (4 + _LABEL)
        block += textwrap.wrap(
            text, width, initial_indent=f"    {label:<{_LABEL}}", subsequent_indent=indent, break_long_words=False
        )
    return block


def _facts(finding: "Finding") -> list[str]:
    """Facts as words: `refused call 10 %`."""
    from paceline.report.units import figure

    shown = []
    for name, value in finding.evidence.facts.items():
        large = isinstance(value, int | float) and abs(value) >= 1000
        text = f"{value:,.0f}" if large else figure(name, round(value, 2) if isinstance(value, float) else value)
        label = name
        for unit in _UNITS:
            label = label.removesuffix(unit)
        shown.append(f"{label.replace('_', ' ')} {text}")
    return shown


def _saves(finding: "Finding") -> str:
    from paceline.report.units import dollars, megabytes, seconds

    saving = finding.saving
    parts = []
    if saving.latency_s:
        parts.append(f"{seconds(saving.latency_s)} a request")
    if saving.cost_per_1000_usd:
        parts.append(f"{dollars(saving.cost_per_1000_usd)} per 1,000 requests")
    if saving.memory_mb:
        parts.append(f"{megabytes(saving.memory_mb)} at the peak")
    on_path = f"; {seconds(finding.critical_path_s)} on the critical path where it happens"
    return (", ".join(parts) or "nothing that this run can measure") + (on_path if finding.critical_path_s else "")
