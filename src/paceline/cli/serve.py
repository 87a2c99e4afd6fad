"""The gateway: cache, de-duplication, limits, cost and metrics in front of model providers.

example: paceline serve --config gateway.toml
         paceline serve --upstream https://api.openai.com --policy policy.toml
         OPENAI_BASE_URL=http://127.0.0.1:8787/v1 python app.py
"""

import argparse
import json
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.gateway.config import GatewayConfig, Sources
    from paceline.gateway.lifecycle.process import Address
    from paceline.store.folder import RunFolder

_INTERRUPTED = 130
# Options that say a field of [server], by their name here.
_SERVER = {
    "host": "host",
    "port": "port",
    "workers": "workers",
    "drain_s": "drain_s",
    "timeout": "first_byte_s",
    "access_log": "access_log",
    "insecure_bind": "insecure_bind",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--config", metavar="FILE", help="server, providers, policy and keys in one TOML file")
    parser.add_argument("--check", metavar="FILE", help="say what this --config means, if it is right; no more")
    parser.add_argument("--upstream", metavar="URL", help="one server for all dialects instead of the providers' own")
    parser.add_argument("--policy", metavar="FILE", help="what to do besides passing on (TOML, JSON)")
    parser.add_argument("--keys", metavar="FILE", help="who may call, as `paceline keys` wrote it; others are refused")
    parser.add_argument(
        "--run", dest="run_dir", type=Path, metavar="DIR", help="write a span of every call there; made if missing"
    )
    parser.add_argument(
        "--record-answers", action="store_true", help="and prompts and answers there, in clear, for `cache warm DIR`"
    )
    parser.add_argument("--host", help="address to listen on (127.0.0.1); others only with keys")
    parser.add_argument("--port", type=int, help="0 picks a free one (8787)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that share the port (1)")
    parser.add_argument("--drain-s", type=float, metavar="S", help="for calls in flight when it is stopped (30)")
    parser.add_argument("--timeout", type=float, metavar="S", help="to the first byte of an answer (300)")
    parser.add_argument("--access-log", metavar="FILE", help="a JSON line for every call, without prompts; -: stdout")
    parser.add_argument("--insecure-bind", action="store_true", default=None, help="listen without keys on any address")
    parser.add_argument("--json", action="store_true", help="announce the address as one JSON line")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM (exit 0) or Ctrl-C (exit 130)."""
    import uvloop

    from paceline.errors import ConfigError
    from paceline.gateway.lifecycle.run import Recording, run_gateway

    if args.record_answers and args.run_dir is None:
        msg = "--record-answers writes into a run: name it with --run DIR"
        raise ConfigError(msg)

    sources = _sources(args)
    if args.check is not None:
        return _check(sources, args.check)

    def ready(config: "GatewayConfig", address: "Address") -> None:
        if args.json:
            print(json.dumps({"url": address.url, "port": address.port}), flush=True)
        else:
            print(_welcome(config, address), flush=True)

    made = _new_run(args.run_dir)
    try:
        number = uvloop.run(run_gateway(sources, ready, Recording(args.run_dir, args.record_answers)))
    finally:
        if made is not None:
            made.finish()
    if number == signal.SIGINT:
        print("paceline: stopped", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _new_run(folder: Path | None) -> "RunFolder | None":
    """The run that the gateway itself begins and ends; None: nothing is recorded, or the run is somebody else's."""
    if folder is None or folder.exists():
        return None
    from paceline.store.folder import create_run

    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.name)
    return create_run(folder.parent, name, command=sys.argv, folder=folder.name)


def _sources(args: argparse.Namespace) -> "Sources":
    from paceline.errors import ConfigError
    from paceline.gateway.config import Sources

    if args.check is not None and args.config is not None:
        msg = "--check and --config both name a configuration: leave one out"
        raise ConfigError(msg)
    if args.timeout is not None and args.timeout <= 0:
        msg = f"--timeout must be above 0 s; got {args.timeout:g}"
        raise ConfigError(msg)
    said: dict[str, Any] = {field: getattr(args, option) for option, field in _SERVER.items()}
    return Sources(
        config=args.check or args.config,
        policy=args.policy,
        keys=args.keys,
        upstream=args.upstream,
        passes_on=args.run_dir is not None,
        overrides={field: value for field, value in said.items() if value is not None},
    )


def _check(sources: "Sources", path: str) -> int:
    from paceline.gateway.config_text import described

    print(f"{path} is right\n{described(sources.load())}")
    return 0


def _welcome(config: "GatewayConfig", address: "Address") -> str:
    from paceline.gateway.config_text import described, how_to_point_at

    return (
        f"paceline gateway on {address.url}\n{described(config)}\n\n"
        f"Point your application at it and change nothing else:\n{how_to_point_at(address.url)}\n\n"
        "Ctrl-C stops it, SIGHUP reads the configuration again"
    )
