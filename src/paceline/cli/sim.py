"""A simulated provider that speaks the APIs of OpenAI, Anthropic and Gemini: their pace, limits, errors; no bill.

example: paceline sim --speed 10
         OPENAI_BASE_URL=http://127.0.0.1:8900/v1 OPENAI_API_KEY=any python app.py
"""

import argparse
import asyncio
import json
import math
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.testing import Model, ProviderConfig, SimulatedProvider

_INTERRUPTED = 130


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

    if not 0 < args.speed < math.inf:
        msg = f"--speed must be above 0; got {args.speed:g}"
        raise ConfigError(msg)
    config = load_config(args.config) if args.config else ProviderConfig()
    provider = SimulatedProvider(config, speed=args.speed, seed=args.seed, host=args.host, port=args.port, keep_calls=0)
    number = uvloop.run(_until_told(provider, args))
    print(f"paceline: stopped; {provider.answered:,} answered, {provider.refused:,} refused", file=sys.stderr)
    return _INTERRUPTED if number == signal.SIGINT else 0


async def _until_told(provider: "SimulatedProvider", args: argparse.Namespace) -> int:
    """Serve, and return the signal that ended it."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()

    def stop(number: int) -> None:
        if not told.done():
            told.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    async with provider:
        # First what it is, then that it is there: who waits for the address may stop reading after it.
        print(_described(provider.config, args.speed, args.seed), file=sys.stderr, flush=True)
        if args.json:
            print(json.dumps({"url": provider.url, "port": provider.port}), flush=True)
        else:
            print(f"simulated provider on {provider.url} (for SDKs: {provider.base_url}); stop with Ctrl-C", flush=True)
        return await told


def _described(config: "ProviderConfig", speed: float, seed: int) -> str:
    pace = "real pace" if speed == 1 else f"{speed:g} times real pace"
    models = ", ".join(f"{name} ({limits})" if (limits := _limits(m)) else name for name, m in config.models.items())
    return f"models at {pace}, seed {seed}: {models}"


def _limits(model: "Model") -> str:
    limits = ((model.requests_per_min, "requests/min"), (model.tokens_per_min, "tokens/min"))
    return ", ".join(f"{value:,.0f} {unit}" for value, unit in limits if value)
