"""Hits of other caches, for benchmarks/cache.py: a program of its own, run by the Python that has them installed.

Prints one JSON line of microseconds a hit for each line it reads, so that its rounds alternate with ours. Imports
nothing of Paceline. What cannot be imported or fails is named with the reason, once, in the first line.

    python benchmarks/_cache_peers.py FOLDER REDIS_URL HITS
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from importlib import import_module

VALUE = "x" * 1_000
KEYS = [f"user:{number}:profile" for number in range(50)]
Asked = Callable[[str], Awaitable[object]]


async def peers(folder: str, url: str) -> tuple[dict[str, Asked], dict[str, str]]:
    ready, skipped = {}, {}
    for name, make in {
        "aiocache_memory": _aiocache,
        "cashews_memory": _cashews_memory,
        "cashews_redis": _cashews_redis,
        "aiocache_redis": _aiocache_redis,
        "diskcache": _diskcache,
    }.items():
        try:
            asked = await make(folder, url)
            for key in KEYS:
                assert await asked(key) == VALUE
            ready[name] = asked
        except Exception as error:  # noqa: BLE001 - whatever keeps a peer from running is the answer
            skipped[name] = f"{type(error).__name__}: {error}"
    return ready, skipped


async def _aiocache(folder: str, url: str) -> Asked:
    cache = import_module("aiocache").SimpleMemoryCache(ttl=300)
    for key in KEYS:
        await cache.set(key, VALUE)
    return cache.get  # type: ignore[no-any-return]


async def _aiocache_redis(folder: str, url: str) -> Asked:
    host, port = url.removeprefix("redis://").split("/")[0].split(":")
    cache = import_module("aiocache").RedisCache(endpoint=host, port=int(port), ttl=300)
    for key in KEYS:
        await cache.set(key, VALUE)
    return cache.get  # type: ignore[no-any-return]


async def _cashews_memory(folder: str, url: str) -> Asked:
    return await _cashews("mem://")


async def _cashews_redis(folder: str, url: str) -> Asked:
    return await _cashews(url.removesuffix("0") + "1")  # it pickles: not among the others' keys


async def _cashews(url: str) -> Asked:
    cache = import_module("cashews").Cache()
    cache.setup(url)

    async def make() -> str:
        return VALUE

    async def asked(key: str) -> object:
        return await cache.get_or_set(key, make, expire=300)

    return asked


async def _diskcache(folder: str, url: str) -> Asked:
    cache = import_module("diskcache").Cache(folder)
    for key in KEYS:
        cache.set(key, VALUE, expire=300)

    async def asked(key: str) -> object:
        return cache.get(key)

    return asked


async def main() -> None:
    folder, url, hits = sys.argv[1], sys.argv[2], int(sys.argv[3])
    ready, skipped = await peers(folder, url)
    print(json.dumps({"skipped": skipped}), flush=True)
    while sys.stdin.readline():
        line = {}
        for name, asked in ready.items():
            rounds = max(1, hits // len(KEYS) // (10 if "redis" in name else 1))
            started_s = time.thread_time()
            wall_s = time.perf_counter()
            for _ in range(rounds):
                for key in KEYS:
                    await asked(key)
            line[name] = {
                "cpu_us": (time.thread_time() - started_s) / (rounds * len(KEYS)) * 1e6,
                "wall_us": (time.perf_counter() - wall_s) / (rounds * len(KEYS)) * 1e6,
            }
        print(json.dumps(line), flush=True)


asyncio.run(main())
