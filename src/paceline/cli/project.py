"""Say what changes would do to a recorded run, before they are made.

A change is KIND:KEY=VALUE,...  Lists are joined by +, ranges written LOW..HIGH, a chain of steps a>b. Kinds:
parallelise, cache, speed_up, remove, defer, limit, route, trim, batch (docs/reference.md).

examples:
  paceline project RUN --change parallelise:steps=retrieve+classify --change cache:key=text,shared_in_flight=true
  paceline project RUN --change trim:step=answer,output_ratio=0.4..0.6
  paceline project RUN --change route:step=classify,model=gpt-4o-mini \\
      --model gpt-4o-mini:ttft_p50_s=0.3,ttft_p95_s=0.8,token_gap_s=0.01
"""

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from paceline.errors import ConfigError, InputError

if TYPE_CHECKING:
    from paceline.model.change import Change
    from paceline.model.figures import Figures
    from paceline.model.projection import Projection
    from paceline.project.pace import ModelPace
    from paceline.trace.data import RunData

_ROWS = (
    ("p50", "p50_s"),
    ("p95", "p95_s"),
    ("mean", "mean_s"),
    ("requests/s", "requests_per_s"),
    ("success", "success_ratio"),
    ("from the cache", "hit_ratio"),
    ("cost per 1,000", "cost_per_1000_usd"),
    ("memory", "memory_mb"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("folder", metavar="RUN", type=Path, help="a run folder that record, load or tune wrote")
    parser.add_argument("--change", action="append", default=[], metavar="KIND:KEY=VALUE,...", help="may be repeated")
    parser.add_argument("--changes", type=Path, metavar="FILE", help="a TOML file with [[changes]], before --change")
    parser.add_argument("--model", action="append", default=[], metavar="NAME:KEY=VALUE,...", help="pace of a model")
    parser.add_argument("--scenario", metavar="NAME", help="which scenario of the run (default: its first)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=30, help="simulated runs (default: %(default)s)")
    parser.add_argument("--salvage", action="store_true", help="leave damaged parts of a run out instead of refusing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Project and print. Exit code 1 when the projection is refused."""
    if args.repetitions < 5:
        msg = f"--repetitions must be at least 5; got {args.repetitions}"
        raise ConfigError(msg)
    changes = (_from_file(args.changes) if args.changes else []) + [parse_change(text) for text in args.change]
    models = dict(parse_model(text) for text in args.model)
    from paceline.project.projector import Projector
    from paceline.store.folder import open_run
    from paceline.trace.data import RunData
    from paceline.trace.figures import figures_of

    folder = open_run(args.folder, salvage=args.salvage)
    data = RunData(folder.info, folder.requests(), folder.spans(), folder.resources())
    scenario = _scenario(data, args.scenario)
    projector = Projector(data, scenario, models=models, seed=args.seed, repetitions=args.repetitions)
    projection = projector.project(changes)
    part = data.scenario(scenario)
    before = figures_of(part.requests, part.spans, part.resources)
    if args.json:
        record = {"run": data.info.id, "scenario": scenario, "before": before, "projection": projection}
        print(msgspec.json.encode(record).decode())
    elif projection.refusal is None:
        _print(before, projection)
    if projection.refusal is not None:
        print(f"paceline project: {projection.refusal}", file=sys.stderr)
        return 1
    return 0


def parse_change(text: str) -> "Change":
    """A change from KIND:KEY=VALUE,...; ConfigError says what is wrong with it."""
    kind, fields = _fields(text)
    return _change({"kind": kind, **{name: _value(value) for name, value in fields.items()}}, repr(text))


def parse_model(text: str) -> "tuple[str, ModelPace]":
    """A model's pace from NAME:KEY=VALUE,...; ConfigError says what is wrong with it."""
    from paceline.project.pace import ModelPace

    name, fields = _fields(text)
    try:
        return name, msgspec.convert({k: _value(v) for k, v in fields.items()}, ModelPace)
    except msgspec.ValidationError as error:
        msg = f"--model {text!r}: {error}"
        raise ConfigError(msg) from error


def _fields(text: str) -> tuple[str, dict[str, str]]:
    """The name and the fields after it; the colon that counts is the last one before the first equals sign."""
    head, equals, _ = text.partition("=")
    name = head.rpartition(":")[0] if equals else head.partition(":")[0]
    rest = text[len(name) + 1 :]
    fields: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, found, value = part.partition("=")
        if not found:
            msg = f"{text!r}: expected KEY=VALUE after the colon; got {part!r}"
            raise ConfigError(msg)
        fields[key.strip()] = value.strip()
    if not name.strip():
        msg = f"{text!r}: expected a name, a colon and KEY=VALUE,..., such as defer:step=validate"
        raise ConfigError(msg)
    return name.strip(), fields


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    low, dots, high = text.partition("..")
    try:
        return [float(low), float(high)] if dots else float(text) if not text.lstrip("-").isdigit() else int(text)
    except ValueError:
        return text


def _from_file(path: Path) -> "list[Change]":
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise ConfigError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is not valid TOML: {error}"
        raise ConfigError(msg) from error
    tables = raw.get("changes")
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        msg = f"{path}: expected [[changes]] tables, each with a kind"
        raise ConfigError(msg)
    return [_change(table, f"{path}: changes[{i}]") for i, table in enumerate(tables)]


def _change(raw: dict[str, Any], where: str) -> "Change":
    """The change these fields describe; ranges may be numbers or pairs, lists may be joined by +."""
    from paceline.model.change import Change
    from paceline.model.estimate import Range

    kinds = {k.__struct_config__.tag: k for k in Change.__args__}
    kind = kinds.get(raw.get("kind"))
    if kind is None:
        msg = f"{where}: unknown kind {raw.get('kind')!r}; one of {', '.join(map(str, kinds))}"
        raise ConfigError(msg)
    fields = dict(raw)
    try:
        for field in msgspec.structs.fields(kind):
            value = fields.get(field.name)
            if field.type in (Range, Range | None) and value is not None:
                fields[field.name] = msgspec.to_builtins(Range.parse(value))
            elif field.type == list[str] and isinstance(value, str):
                fields[field.name] = value.split("+")
        change: Change = msgspec.convert(fields, kind)
    except (ValueError, msgspec.ValidationError) as error:
        msg = f"{where}: {error}"
        raise ConfigError(msg) from error
    return change


def _scenario(data: "RunData", wanted: str | None) -> str:
    names = data.scenario_names
    if not names:
        msg = f"run {data.info.id} has no requests; drive some load at the recorded application first"
        raise InputError(msg)
    if wanted is not None and wanted not in names:
        msg = f"no scenario {wanted!r} in run {data.info.id}; it has: {', '.join(names)}"
        raise ConfigError(msg)
    return wanted or names[0]


def _print(before: "Figures", projection: "Projection") -> None:
    from rich.console import Console
    from rich.table import Table

    from paceline.model.change import describe
    from paceline.report.units import figure, rate

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has no edge to wrap at
    table = Table("", "before", "projected", "90 % interval")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, field in _ROWS:
        estimate = getattr(projection.figures, field)
        if estimate is not None:
            low, value, high = (figure(field, x) for x in (estimate.low, estimate.value, estimate.high))
            table.add_row(name, figure(field, getattr(before, field)), value, f"{low} to {high}")
    console.print(table)
    lines = [f"change: {describe(c)}" for c in projection.changes] or ["no change: the baseline as simulated"]
    if projection.bottleneck and projection.capacity_per_s:
        busy = projection.utilisation.get(projection.bottleneck, 0.0)
        lines.append(f"busiest: {projection.bottleneck} ({busy:.0%}), enough for {rate(projection.capacity_per_s)}")
    off = ", ".join(f"{name} {error:+.1%}" for name, error in projection.base_error.items())
    lines.append(f"the simulated baseline against the measured one: {off}")
    lines += _sentences("assumed", projection.assumptions)
    for line in lines:
        console.print(f"  {line}", soft_wrap=True, markup=False)
    runs = f"{projection.repetitions} simulated runs, seed {projection.seed}"
    print(f"{runs}; next: make the change and measure it with paceline record and load", file=sys.stderr)


def _sentences(label: str, sentences: Sequence[str]) -> list[str]:
    return [f"{label}: {sentence}" for sentence in sentences]
