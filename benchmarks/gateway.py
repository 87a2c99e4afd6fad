"""CPU the gateway spends on one call, beside nginx and other gateways.

    python -m benchmarks.gateway --json [--quick] [--litellm PATH] [--peer PATH]

hit                an exact cache hit
miss               a model call passed through: no policy, metrics and cost on
recommended_miss   a call nobody made before under the policy `paceline serve` has when none is given
spans_miss         as miss, and a span of every call written to a run
stream             a streamed call of 21 events passed through, for each request and each event
Timed: user + system CPU of the gateway's processes (one worker) over N chat calls of 1 KB on 32 kept-alive connections,
divided by N. The upstream is nginx answering from memory where it is installed (a server of our own for streams), on
another core with the load; nginx also runs as a static server and as a proxy in the gateway's place. PATHs are the
programs of LiteLLM and sglang-router, installed apart (.venv-peers/bin). Rounds of all targets alternate and are short,
so that what else the machine does hits all of them; the figure is the median. `ratio` is the median over the rounds of
peer / ours, `over_nginx` of ours / nginx.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks._rig import (
    CONNECTIONS,
    Target,
    alternate,
    announced,
    call,
    cores,
    cpu_us_per_request,
    free_port,
    listening,
    machine,
    nginx,
    nginx_path,
    pin,
    python_upstream,
)
from paceline.store.folder import create_run

EVENTS = 21
PASSING = "single_flight = false\n"
SHARING = "single_flight = true\n[cache]\nenabled = true\n"
SMALL = SHARING + "[cache.memory]\nmax_bytes = 2_000_000\n"  # full long before the memory is looked at first
HEAVY = 50  # a peer that needs milliseconds for a call gets this many times fewer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object (also the default)")
    parser.add_argument("--quick", action="store_true", help="fewer requests and rounds")
    parser.add_argument("--litellm", type=Path, metavar="PATH", help="LiteLLM's program, to run beside")
    parser.add_argument("--peer", type=Path, metavar="PATH", help="sglang-router's program, to run beside")
    args = parser.parse_args()
    load, _ = cores()
    pin(load)
    count, rounds = (1000, 12) if args.quick else (2000, 35)
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(Path(temporary), count, rounds, absolute(args.litellm), absolute(args.peer))
    print(json.dumps(result))


def absolute(program: Path | None) -> str | None:
    """Its whole path: peers run in a folder of their own. A link stays one, for it says which Python runs it."""
    return None if program is None else str(program.absolute())


def measure(folder: Path, count: int, rounds: int, litellm: str | None, peer: str | None) -> dict[str, Any]:
    """All targets in alternating rounds of `count` requests."""
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(plain_upstream(folder))[1]
        streams = stack.enter_context(python_upstream(cores()[0]))[1]
        run = create_run(folder, "spans").path
        passing = stack.enter_context(gateway(folder, upstream, PASSING))
        sharing = stack.enter_context(gateway(folder, upstream, SHARING))
        recommended = stack.enter_context(gateway(folder, upstream, None))
        spans = stack.enter_context(gateway(folder, upstream, PASSING, "--run", str(run)))
        streaming = stack.enter_context(gateway(folder, streams, PASSING))
        figures: dict[str, Callable[[int], float]] = {
            "hit": rounds_of(sharing, count),
            "miss": rounds_of(passing, count, new=True),
            "recommended_miss": rounds_of(recommended, count, new=True),
            "spans_miss": rounds_of(spans, count, new=True),
            "stream": rounds_of(streaming, count // 4, stream=True),
        }
        if nginx_path():
            _, tested = cores()
            static = stack.enter_context(nginx(folder / "static", tested))
            proxy = stack.enter_context(nginx(folder / "proxy", tested, upstream=upstream))
            figures |= {"nginx_static": rounds_of(static, count), "nginx_proxy": rounds_of(proxy, count, new=True)}
        if litellm:
            hits = stack.enter_context(start_litellm(folder, litellm, upstream, cache=True))
            misses = stack.enter_context(start_litellm(folder, litellm, upstream, cache=False))
            figures["litellm_hit"] = rounds_of(hits, count // HEAVY)
            figures["litellm_miss"] = rounds_of(misses, count // HEAVY, new=True)
        if peer:
            other = stack.enter_context(start_sglang_router(peer, upstream))
            figures["sglang_router_miss"] = rounds_of(other, count, new=True)
        measured = alternate(figures, rounds)
        rss_mb = round(sharing[0].memory_info().rss / 1e6, 1)
    return {
        "benchmark": "gateway",
        "machine": machine(),
        "connections": CONNECTIONS,
        "requests_per_round": count,
        "upstream": "nginx" if nginx_path() else "our own server",
        **report(measured),
        "rounds": measured,
        "rss_mb": rss_mb,
    }


def report(rounds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Figures by their published names."""

    def ratio(one: str, other: str, digits: int = 2) -> float:
        return round(statistics.median(a / b for a, b in zip(rounds[one], rounds[other], strict=True)), digits)

    median = {name: statistics.median(values) for name, values in rounds.items()}
    figures: dict[str, dict[str, float]] = {
        name: {"cpu_us_per_request": round(value, 1)} for name, value in median.items() if "litellm" not in name
    }
    figures["stream"]["cpu_us_per_event"] = round(median["stream"] / EVENTS, 1)
    for mine, theirs in (("hit", "nginx_static"), ("miss", "nginx_proxy"), ("recommended_miss", "nginx_proxy")):
        if theirs in median:
            figures[mine]["over_nginx"] = ratio(mine, theirs)
    if "sglang_router_miss" in median:
        figures["sglang_router_miss"]["ratio"] = ratio("sglang_router_miss", "miss")
    if "litellm_hit" in median:
        figures["litellm"] = {
            "hit_cpu_us_per_request": round(median["litellm_hit"], 1),
            "miss_cpu_us_per_request": round(median["litellm_miss"], 1),
            "hit_ratio": ratio("litellm_hit", "hit", 1),
            "miss_ratio": ratio("litellm_miss", "miss", 1),
        }
    return figures


def rounds_of(target: Target, count: int, *, new: bool = False, stream: bool = False) -> Callable[[int], float]:
    """What measures one round of `count` requests; `new`: calls nobody made before."""

    def measure_one(turn: int) -> float:
        first, number = (turn + 2) * count, count if turn >= 0 else min(count, 500)
        requests = [call(first + i if new else None, stream=stream) for i in range(number)]
        return cpu_us_per_request(target, requests)

    return measure_one


@contextlib.contextmanager
def plain_upstream(folder: Path) -> Iterator[Target]:
    """The provider of plain calls."""
    load, _ = cores()
    with nginx(folder / "upstream", load) if nginx_path() else python_upstream(load) as target:
        yield target


@contextlib.contextmanager
def gateway(folder: Path, upstream: int, policy: str | None, *options: str) -> Iterator[Target]:
    """`paceline serve` with this policy; None: the one it has when none is given."""
    command = [sys.executable, "-m", "paceline", "serve", "--json", "--port", "0"]
    command += ["--upstream", f"http://127.0.0.1:{upstream}", *options]
    if policy is not None:
        path = folder / f"policy-{len(list(folder.glob('policy-*')))}.toml"
        path.write_text(policy)
        command += ["--policy", str(path)]
    with announced(command, cores()[1]) as target:
        yield target


@contextlib.contextmanager
def start_litellm(folder: Path, program: str, upstream: int, *, cache: bool) -> Iterator[Target]:
    """LiteLLM's proxy at its leanest: no database, no call-backs, the key of our calls as its master key."""
    config = folder / f"litellm-{cache}.yaml"
    config.write_text(
        "model_list:\n - model_name: gpt-4o-mini\n   litellm_params:\n    model: openai/gpt-4o-mini\n"
        f"    api_base: http://127.0.0.1:{upstream}/v1\n    api_key: sk-x\n"
        "litellm_settings:\n telemetry: false\n"
        + (" cache: true\n cache_params:\n  type: local\n" if cache else "")
        + "general_settings:\n master_key: sk-x\n"
    )
    port = free_port()
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_PROXY": "*"}
    with listening(command, cores()[1], port, within_s=120.0, env=environment, cwd=folder) as target:
        yield target


@contextlib.contextmanager
def start_sglang_router(program: str, upstream: int) -> Iterator[Target]:
    """sglang-router (Rust) in front of the same upstream, without retries and health checks."""
    port = free_port()
    command = [program, "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin", "--log-level", "error"]
    command += ["--prometheus-port", str(free_port()), "--disable-retries", "--disable-health-check"]
    with listening(command, cores()[1], port) as target:
        yield target


if __name__ == "__main__":
    main()
