"""Runs a Python service recorded, without touching its code; its model calls go through the gateway.

example: paceline record -- uvicorn app:app --port 8000
         paceline record --ready http://127.0.0.1:8000/health -- python -m myservice

Ctrl-C stops the service and seals the run. What was recorded survives `kill -9` of either.
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.record.summary import Summary
    from paceline.store.folder import RunFolder
    from paceline.tune.recorded import RecordedService

_INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--name", default="record", help="name of the run (default %(default)s)")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path(".paceline/runs"),
        metavar="DIR",
        help="folder for runs (default .paceline/runs)",
    )
    parser.add_argument(
        "--upstream",
        metavar="URL",
        help="server behind the gateway for the calls of OpenAI's SDK (default: OPENAI_BASE_URL, else OpenAI); "
        "Anthropic's and Google's are what ANTHROPIC_BASE_URL and GOOGLE_GEMINI_BASE_URL say, else their own",
    )
    parser.add_argument(
        "--record-answers", action="store_true", help="keep prompts and answers, in clear, for `cache warm` of the run"
    )
    parser.add_argument("--no-gateway", action="store_true", help="leave the model calls' way alone; no cost per call")
    parser.add_argument("--ready", metavar="URL", help="say when this URL answers; give up when it never does")
    parser.add_argument("--ready-timeout", type=float, default=90.0, metavar="S", help="(default 90)")
    parser.add_argument("--quiet", action="store_true", help="do not show what the service prints (see service.log)")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD ...", help="the service")


def run(args: argparse.Namespace) -> int:
    """Record until the service ends (its exit code) or Ctrl-C (130)."""
    from paceline.store.folder import create_run

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        msg = "no command given: put it after `--`, like `paceline record -- uvicorn app:app`"
        raise ConfigError(msg)
    if args.no_gateway and args.upstream:
        msg = "--upstream and --no-gateway contradict each other: without a gateway nothing is behind it"
        raise ConfigError(msg)
    if args.no_gateway and args.record_answers:
        msg = "--record-answers and --no-gateway contradict each other: the gateway is what sees the answers"
        raise ConfigError(msg)
    upstream = None if args.no_gateway else _upstream(args.upstream)
    folder = create_run(args.runs, args.name, command=command)
    code = asyncio.run(_record(folder, command, upstream, args))
    _tell(_summary(folder), code, as_json=args.json)
    return code


async def _record(
    folder: "RunFolder", command: list[str], upstream: dict[str, str] | None, args: argparse.Namespace
) -> int:
    """Run the service to its end or to the first signal; the run is sealed either way."""
    from paceline.model.run import COMPLETE, PARTIAL
    from paceline.record.launcher import LOG, echo
    from paceline.tune.recorded import RecordedService

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    _say(f"recording into {folder.path}")
    state, reason = PARTIAL, "it did not start"
    log = folder.path / LOG
    log.touch()
    shown = asyncio.create_task(echo(log, sys.stderr)) if not args.quiet else None  # cancelled below
    try:
        async with RecordedService(
            folder,
            command=command,
            ready_url=args.ready,
            ready_timeout_s=args.ready_timeout,
            upstream=upstream,
            answers=args.record_answers,
            generator=False,
        ) as service:
            code = await _until_end(service, stop)
        state, reason = (
            (PARTIAL, f"the service ended with exit code {code}") if code not in (0, _INTERRUPTED) else (COMPLETE, "")
        )
    finally:
        if shown is not None:
            await asyncio.sleep(0.1)  # its last lines
            shown.cancel()
        folder.finish(state, reason or None)
    return code


async def _until_end(service: "RecordedService", stop: asyncio.Event) -> int:
    where = f", model calls through {service.gateway_url}" if service.gateway_url else ""
    _say(f"running as process {service.pid}{where}; stop with Ctrl-C")
    ended, stopped = asyncio.create_task(service.wait()), asyncio.create_task(stop.wait())
    done, pending = await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return ended.result() if ended in done else _INTERRUPTED


def _upstream(given: str | None) -> dict[str, str]:
    """The server behind the gateway for each provider's calls: where they would go without it. ConfigError: no URL."""
    from paceline.gateway.config import BASE_URL_ENV, DEFAULT_URLS
    from paceline.wire.client import split_url

    urls = {}
    for name, own in DEFAULT_URLS.items():
        where, url = BASE_URL_ENV[name], os.environ.get(BASE_URL_ENV[name]) or own
        if name == "openai" and given is not None:
            where, url = "--upstream", given
        try:
            split_url(url)
        except ConfigError as error:
            msg = f"{where} is {error}"
            raise ConfigError(msg) from error
        urls[name] = url
    return urls


def _summary(folder: "RunFolder") -> "Summary":
    from paceline.record.summary import summarise

    return summarise(folder)


def _tell(summary: "Summary", code: int, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        print(msgspec.json.encode({**msgspec.structs.asdict(summary), "exit_code": code}).decode())
        return
    for line in summary.lines():
        print(line)
    print(f"next: paceline diagnose {summary.run}")


def _say(text: str) -> None:
    print(f"paceline: {text}", file=sys.stderr, flush=True)
