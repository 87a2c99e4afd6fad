"""`paceline load URL --cache-test FILE`: the options, the table, the exit code."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from paceline.cli import load_view
from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.load.cache_test import CacheTestPlan, CacheTestResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the cache test."""
    test = parser.add_argument_group("cache test (URL; takes the place of a load)")
    test.add_argument(
        "--cache-test",
        action="append",
        type=Path,
        metavar="FILE",
        help="CSV of questions (text,label) or near misses (a,b); may be repeated",
    )
    test.add_argument("--template", type=Path, metavar="FILE", help="body to send, {{question}} in it; default: chat")
    test.add_argument("--per-stream", type=int, default=200, metavar="N", help="requests in each stream (default: 200)")
    test.add_argument("--cache-header", action="append", metavar="NAME", help="the one that says hit or miss")
    test.add_argument("--max-wrong-hits", type=float, metavar="RATIO", help="exit code 1 above it, such as 0.001")


def run(args: argparse.Namespace) -> int:
    """Test the cache at the URL and print what came out; 1 above --max-wrong-hits or when nothing was answered."""
    import uvloop

    from paceline.load.cache_test import run_cache_test
    from paceline.load.queries import read_queries

    parts = urlsplit(args.target)
    if not (parts.scheme and parts.netloc):
        msg = f"--cache-test needs a URL such as http://127.0.0.1:8080/v1/chat/completions; got {args.target}"
        raise ConfigError(msg)
    plan = _plan(args)
    queries = read_queries(args.cache_test)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    base = f"{parts.scheme}://{parts.netloc}"
    with load_view.shown(args) as progress:
        result = uvloop.run(run_cache_test(base, path, queries, plan, progress=progress))
    if args.json:
        print(msgspec.json.encode(result).decode())
    else:
        _print(result)
    return _code(result, args.max_wrong_hits)


def _plan(args: argparse.Namespace) -> "CacheTestPlan":
    from paceline.load.cache_test import CacheTestPlan

    defaults = CacheTestPlan()
    headers = [tuple(text.split(":", 1)) for text in args.header]
    if any(len(pair) != 2 for pair in headers):
        msg = "--header must look like 'Name: value'"
        raise ConfigError(msg)
    try:
        return CacheTestPlan(
            per_stream=args.per_stream,
            questions=max(1, args.per_stream // 2),
            seed=args.seed,
            users=args.users or defaults.users,
            template=args.template.read_text() if args.template else defaults.template,
            headers=(*defaults.headers, *((name.strip(), value.strip()) for name, value in headers)),
            cache_headers=tuple(args.cache_header or defaults.cache_headers),
            timeout_s=args.timeout,
        )
    except OSError as error:
        msg = f"cannot read the template {args.template}: {error.strerror}"
        raise ConfigError(msg) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _print(result: "CacheTestResult") -> None:
    from rich.console import Console
    from rich.table import Table

    from paceline.report.units import percent, seconds

    table = Table(title="cache test", title_justify="left")
    for name in ("stream", "n", "failed", "hits", "wrong hits", "p50", "p95", "p50 of hits", "p50 of misses"):
        table.add_column(name, justify="left" if name == "stream" else "right", no_wrap=True)
    for s in result.streams:
        wrong = f"{s.wrong_hits} ({percent(s.wrong_hit_ratio)})"
        times = [seconds(x) for x in (s.p50_s, s.p95_s, s.hit_p50_s, s.miss_p50_s)]
        table.add_row(s.stream, f"{s.requests:,}", f"{s.failed}", percent(s.hit_ratio), wrong, *times)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has no edge to wrap at
    console.print(table)
    found = result.speedup
    times_faster = f"{found.ratio:,.1f} times as fast" if found.ratio is not None else f"no ratio: {found.reason}"
    facts = [f"cold p50 {seconds(found.cold_p50_s)}, warm p50 {seconds(found.warm_p50_s)}: {times_faster}"]
    facts += [f"wrong hit: {a.text!r}, after {a.source!r}: {a.wrong}" for a in result.wrong[:5]]
    for fact in (*facts, *result.notes):
        console.print(f"  {fact}", soft_wrap=True)


def _code(result: "CacheTestResult", most: float | None) -> int:
    if all(s.failed == s.requests for s in result.streams):
        print("paceline load: cache test: every request failed", file=sys.stderr)
        return 1
    if most is not None and (result.wrong_hit_ratio is None or result.wrong_hit_ratio > most):
        ratio = "not known" if result.wrong_hit_ratio is None else f"{result.wrong_hit_ratio:.2%}"
        print(f"paceline load: cache test: wrong hits {ratio}, above the bound of {most:.2%}", file=sys.stderr)
        return 1
    return 0
