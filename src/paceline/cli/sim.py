"""A simulated provider that speaks OpenAI's API: its pace, its rate limits, its errors; without its bill.

example: paceline sim --speed 10
         OPENAI_BASE_URL=http://127.0.0.1:8900/v1 OPENAI_API_KEY=any python app.py
"""

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.testing import ProviderConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="models, limits and faults (TOML)")
    parser.add_argument("--speed", type=float, default=1.0, metavar="N", help="run N times faster than real")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same pace (default 0)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8900, help="0 picks a free one (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="announce the address as one JSON line")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM (exit 0) or Ctrl-C (exit 130)."""
    import uvloop

    from paceline.errors import ConfigError
    from paceline.testing import ProviderConfig, SimulatedProvider, load_config

    if args.speed <= 0:
        msg = f"--speed must be above 0; got {args.speed:g}"
        raise ConfigError(msg)
    config = load_config(args.config) if args.config else ProviderConfig()

    async def until_stopped() -> int:
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[int] = loop.create_future()

        def stop(number: int) -> None:
            if not stopped.done():
                stopped.set_result(number)

        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, stop, each)
        provider = SimulatedProvider(config, speed=args.speed, seed=args.seed, host=args.host, port=args.port)
        async with provider:
            if args.json:
                print(json.dumps({"url": provider.url, "port": int(provider.url.rsplit(":", 1)[1])}), flush=True)
            else:
                print(
                    f"simulated provider on {provider.url} (for SDKs: {provider.url}/v1); stop with Ctrl-C", flush=True
                )
            print(_described(config, args.speed), file=sys.stderr, flush=True)
            number = await stopped
        print(f"paceline: stopped; {provider.answered:,} answered, {provider.refused:,} refused", file=sys.stderr)
        return number

    return 130 if uvloop.run(until_stopped()) == signal.SIGINT else 0


def _described(config: "ProviderConfig", speed: float) -> str:
    limited = [
        f"{name} {m.requests_per_min or 'no limit of'} requests/min"
        + (f", {m.tokens_per_min:g} tokens/min" if m.tokens_per_min else "")
        for name, m in config.models.items()
        if m.requests_per_min or m.tokens_per_min
    ]
    pace = "real pace" if speed == 1 else f"{speed:g} times real pace"
    return f"models at {pace}: {', '.join(config.models)}; limits: {'; '.join(limited) or 'none'}"
