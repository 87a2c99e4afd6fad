"""The gateway: cache, de-duplication, limits and cost in front of a model provider.

example: paceline serve --upstream https://api.openai.com --policy policy.toml
         OPENAI_BASE_URL=http://127.0.0.1:8787/v1 python app.py
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.wire.server import Server

_INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--upstream", required=True, metavar="URL", help="the provider, like https://api.openai.com")
    parser.add_argument(
        "--run", dest="run_dir", type=Path, metavar="DIR", help="write a span of every call into this run"
    )
    parser.add_argument("--policy", type=Path, metavar="FILE", help="what to do besides passing on (TOML or JSON)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8787, help="0 picks a free one (default %(default)s)")
    parser.add_argument("--insecure-bind", action="store_true", help="allow an address that others can reach")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="to the first byte (default 300)")
    parser.add_argument("--json", action="store_true", help="announce the address as one JSON line")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM (exit 0) or Ctrl-C (exit 130)."""
    import uvloop

    from paceline.accelerate.policy import Policy, load_policy
    from paceline.errors import ConfigError
    from paceline.gateway.lifecycle import GatewayOptions, run_gateway
    from paceline.wire.client import Timeouts

    if args.timeout <= 0:
        msg = f"--timeout must be above 0 s; got {args.timeout:g}"
        raise ConfigError(msg)
    options = GatewayOptions(
        upstream=args.upstream,
        policy=load_policy(args.policy) if args.policy else Policy(),
        run=args.run_dir,
        host=args.host,
        port=args.port,
        insecure_bind=args.insecure_bind,
        timeouts=Timeouts(first_byte_s=args.timeout),
    )

    def ready(server: "Server") -> None:
        url = f"http://{f'[{server.host}]' if ':' in server.host else server.host}:{server.port}"
        if args.json:
            print(json.dumps({"url": url, "port": server.port}), flush=True)
        else:
            print(f"gateway to {options.upstream} on {url} (for SDKs: {url}/v1); stop with Ctrl-C", flush=True)

    number = uvloop.run(run_gateway(options, ready))
    if number == signal.SIGINT:
        print("paceline: stopped", file=sys.stderr)
        return _INTERRUPTED
    return 0
