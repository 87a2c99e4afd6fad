"""The fleet level on a real Redis: shared by caches, told of invalidations, and whatever goes wrong on the wire."""

import asyncio
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.accelerate.redis_server import Proxy, Server, running
from tests.accelerate.test_accelerate_cache_host import ask, level
from tests.patience import PATIENCE_S

from paceline.accelerate.cache import Cache, CachePolicy, FleetPolicy, HostPolicy, MemoryPolicy, storage_key
from paceline.accelerate.cache.breaker import Breaker
from paceline.errors import ConfigError

MB = 1_000_000
KEY = storage_key(None, "key")
REDIS_KEY = b"{paceline}:v:" + KEY


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture(autouse=True)
def _empty(server: Server) -> None:
    server.client().flushall()


def policy(url: str, *, memory: bool = False, host: Path | None = None, **fleet: Any) -> CachePolicy:
    settings = {"enabled": True, "url": url, "timeout_s": 5.0, "retry_s": 0.001, **fleet}
    return CachePolicy(
        memory=MemoryPolicy(enabled=memory),
        host=HostPolicy(enabled=host is not None, path=str(host or "unused"), max_bytes=4 * MB),
        fleet=FleetPolicy(**settings),
        wait_s=5.0,
    )


async def written(cache: Cache) -> None:
    """Wait until every write to the fleet is over."""
    fleet = cache._levels.fleet
    assert fleet is not None
    await until(lambda: not fleet._writes)


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - what it looks at has no event
            await asyncio.sleep(0.001)


async def until_hit(cache: Cache, key: str) -> None:
    """Ask until the answer need not be computed."""
    async with asyncio.timeout(PATIENCE_S):
        while (await ask(cache, key))[1]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.slow
def test_answers_are_shared_by_machines_with_their_age_and_tags(server: Server) -> None:
    async def main() -> None:
        now = [1_000_000.0]
        async with Cache(policy(server.url), now_s=lambda: now[0]) as one:
            assert await ask(one, "key", {"a": [1, b"x"]}, tags=["x"], tenant="t") == ({"a": [1, b"x"]}, True)
            await written(one)
            now[0] += 10.0
            async with Cache(policy(server.url, memory=True), now_s=lambda: now[0]) as two:
                assert await ask(two, "key", tenant="t") == ({"a": [1, b"x"]}, False)
                assert [(row.hits, row.misses) for row in two.statistics().levels] == [(0, 1), (1, 0)]
                assert await ask(two, "key", tenant="t") == ({"a": [1, b"x"]}, False)
                assert [(row.hits, row.misses) for row in two.statistics().levels] == [(1, 1), (1, 0)]
                found = two.peek(storage_key("t", "key"))
                assert found is not None
                assert (found.level, found.age_s) == ("memory", 10.0)
                await one.measure()
                assert (level(one).entries, level(one).bytes > 100) == (1, True)

    asyncio.run(main())


def test_without_a_time_of_its_own_an_answer_is_an_hour_in_redis(server: Server) -> None:
    async def main() -> None:
        async with Cache(policy(server.url)) as cache:
            await ask(cache, "key")
            await ask(cache, "short", ttl_s=7.0)
            await written(cache)
            client = server.client()
            assert 3_590_000 < client.pttl(REDIS_KEY) <= 3_600_000
            assert 6_000 < client.pttl(b"{paceline}:v:" + storage_key(None, "short")) <= 7_000

    asyncio.run(main())


def test_an_invalidation_reaches_the_memory_of_every_process(server: Server) -> None:
    async def main() -> None:
        async with Cache(policy(server.url, memory=True)) as one, Cache(policy(server.url, memory=True)) as two:
            for key in "abcd":
                await ask(one, key, tags=[key], tenant="t")
            await written(one)
            assert [(await ask(two, key, tenant="t"))[1] for key in "abcd"] == [False] * 4
            memory = two._levels.memory
            assert memory is not None
            assert await one.invalidate(tags=["a"]) == 1
            await until(lambda: len(memory) == 3)
            assert await one.invalidate(keys=["b"], tenant="t") == 1
            await until(lambda: len(memory) == 2)
            assert await one.invalidate(tags=["c"], tenant="another") == 0
            assert [(await ask(two, key, tenant="t"))[1] for key in "abcd"] == [True, True, False, False]
            await written(two)
            assert await two.invalidate(tenant="t") == 4
            assert await two.invalidate(everything=True) == 0
            assert [(await ask(one, key, tenant="t"))[1] for key in "abcd"] == [True] * 4

    asyncio.run(main())


def test_an_answer_begun_before_anothers_invalidation_is_not_stored(server: Server) -> None:
    async def main() -> None:
        async with Cache(policy(server.url, memory=True)) as one, Cache(policy(server.url, memory=True)) as two:
            begun, go = asyncio.Event(), asyncio.Event()

            async def slow() -> str:
                begun.set()
                await go.wait()
                return "old"

            for tags, stored in ((["x"], False), (["y"], True)):
                begun.clear()
                go.clear()
                old = asyncio.ensure_future(one.get_or_compute("key", slow, tags=tags))
                await begun.wait()
                await two.invalidate(tags=["x"])
                go.set()
                assert await old == "old"
                await written(one)
                assert await ask(two, "key", "new", tags=tags) == (("old", False) if stored else ("new", True))
                await written(two)
                await two.invalidate(everything=True)

    asyncio.run(main())


def test_one_process_of_the_fleet_computes_and_the_others_take_its_answer(server: Server) -> None:
    async def main() -> None:
        caches = [Cache(policy(server.url)) for _ in range(4)]
        made = []

        async def slow() -> str:
            made.append(1)
            await asyncio.sleep(0.05)
            return "made once"

        answers = await asyncio.gather(*(c.get_or_compute("key", slow) for c in caches for _ in range(5)))
        assert (set(answers), len(made)) == ({"made once"}, 1)
        assert sum(c.statistics().waited for c in caches) == 3
        for cache in caches:
            await cache.close()

    asyncio.run(main())


@pytest.mark.slow
def test_the_lease_of_a_dead_holder_runs_out(server: Server) -> None:
    """A holder that is not heard for `lease_s` is dead; while it lives it renews."""

    async def main() -> None:
        async with (
            Cache(policy(server.url, lease_s=0.3)) as dead,
            Cache(policy(server.url, lease_s=0.3)) as other,
        ):
            lease = await dead.lease(KEY)
            assert lease is not None
            loop = asyncio.get_running_loop()
            assert await other.wait_for(KEY, loop.time() + 0.4) is None
            assert await other.lease(KEY) is None  # renewed beyond its length
            assert lease._renewal is not None
            lease._renewal.cancel()
            assert await ask(other, "key", "made by the other") == ("made by the other", True)
            lease.release()

    asyncio.run(main())


def test_a_lease_that_is_anothers_by_now_is_not_given_back(server: Server) -> None:
    async def main() -> None:
        async with Cache(policy(server.url)) as one:
            lease = await one.lease(KEY)
            client = server.client()
            client.set(b"{paceline}:l:" + KEY, b"anothers")
            assert lease is not None
            lease.release()
            await asyncio.sleep(0.02)
            assert client.get(b"{paceline}:l:" + KEY) == b"anothers"

    asyncio.run(main())


def test_the_budget_of_bytes_holds_in_redis(server: Server) -> None:
    async def main() -> None:
        async with Cache(policy(server.url, max_bytes=50_000)) as cache:
            for number in range(30):
                await ask(cache, number, "x" * 5_000, ttl_s=100.0 + number)
                await written(cache)
            assert level(cache).bytes <= 50_000
            held = [n for n in range(30) if server.client().exists(b"{paceline}:v:" + storage_key(None, n))]
            assert held == list(range(30 - len(held), 30))  # the first ones died soonest
            assert len(held) == level(cache).entries == 9
            await ask(cache, "huge", "x" * 60_000)
            await written(cache)
            assert level(cache).entries == 9

    asyncio.run(main())


def test_what_redis_holds_besides_is_a_miss_and_no_error_to_the_caller(server: Server) -> None:
    """A list under the key, text, an envelope cut short or of another key, one of a later format."""

    async def main() -> None:
        client = server.client()
        async with Cache(policy(server.url)) as cache:
            await ask(cache, "key", "right")
            await ask(cache, "other", "other")
            await written(cache)
            good = client.get(REDIS_KEY)
            anothers = client.get(b"{paceline}:v:" + storage_key(None, "other"))
            assert isinstance(good, bytes)
            assert isinstance(anothers, bytes)
            for wrong in (b"", b"garbage", good[:-1], good[:20], b"P9" + good[2:], anothers, good + b"x", b"\xff" * 99):
                client.set(REDIS_KEY, wrong)
                assert await ask(cache, "key", "right") == ("right", True)
                await written(cache)
                assert await ask(cache, "key", "right") == ("right", False)
            client.delete(REDIS_KEY)
            client.rpush(REDIS_KEY, "a", "list")
            assert await ask(cache, "key", "right") == ("right", True)
            await written(cache)
            assert await ask(cache, "key", "right") == ("right", False)
            client.set(b"{paceline}:epoch", "not a number")
            assert await ask(cache, "new", "right") == ("right", True)

    asyncio.run(main())


@pytest.mark.slow
def test_redis_down_at_the_start_costs_one_attempt_and_it_is_used_when_it_comes(tmp_path: Path) -> None:
    async def main() -> None:
        late = Server()
        late.stop()
        async with Cache(policy(late.url, memory=True, failures=2, timeout_s=0.2)) as cache:
            for number in range(5):
                assert await ask(cache, number) == ("answer", True)
                assert await ask(cache, number) == ("answer", False)
            assert level(cache).state.startswith("down: ")
            assert level(cache).hits == 0
            again = Server(port=late.port)
            try:
                await until(lambda: cache._levels.fleet is not None and cache._levels.fleet.epoch is not None)
                async with asyncio.timeout(PATIENCE_S):
                    while not again.client().dbsize():
                        await ask(cache, "fresh")
                        await cache.invalidate(keys=["unrelated"])
                        await cache.invalidate(keys=["fresh"])
                        await ask(cache, "fresh")
                        await written(cache)
                assert level(cache).state == "up"
            finally:
                again.stop()

    asyncio.run(main())


def test_redis_going_down_means_computing(server: Server) -> None:
    async def main() -> None:
        async with Proxy(server.port) as proxy, Cache(policy(proxy.url, retry_s=30.0)) as cache:
            await ask(cache, "key")
            await written(cache)
            assert (await ask(cache, "key"))[1] is False
            proxy.refuse = True
            proxy.drop()
            answers = [await ask(cache, "key") for _ in range(10)]
            assert answers == [("answer", True)] * 10
            assert level(cache).state.startswith("down: ")
            connections = proxy.connections
            assert (await ask(cache, "key"))[1] is True
            assert proxy.connections == connections  # it is left alone

    asyncio.run(main())


def test_a_slow_redis_opens_the_breaker_and_nobody_waits_for_it(server: Server) -> None:
    """Its answers are held back for good: each request gives up after `timeout_s`, after three none asks."""

    async def main() -> None:
        async with (
            Proxy(server.port) as proxy,
            Cache(policy(proxy.url, timeout_s=0.03, failures=3, retry_s=30.0)) as cache,
        ):
            fleet = cache._levels.fleet
            assert fleet is not None
            await fleet.ready()
            await until(lambda: fleet.epoch is not None)
            proxy.flowing.clear()
            for number in range(20):
                assert (await ask(cache, number))[1] is True
            assert fleet.breaker.is_open
            assert fleet.counts.errors <= 5
            assert level(cache).state == "down: no answer within 0.03 s"
            proxy.flowing.set()

    asyncio.run(main())


def test_after_a_pause_one_request_tries_again(server: Server) -> None:
    async def main() -> None:
        async with (
            Proxy(server.port) as proxy,
            Cache(policy(proxy.url, timeout_s=0.05, failures=1, retry_s=0.001)) as cache,
        ):
            assert (await ask(cache, "key"))[1] is True
            await written(cache)
            proxy.flowing.clear()
            assert (await ask(cache, "key"))[1] is True
            assert cache._levels.fleet is not None
            assert cache._levels.fleet.breaker.is_open
            proxy.flowing.set()
            await until_hit(cache, "key")
            assert level(cache).state == "up"

    asyncio.run(main())


@pytest.mark.parametrize("wrong", ["garbage", "binary", "cut", "error", "other type", "huge length"])
def test_wrong_answers_of_the_wire_are_misses(server: Server, wrong: str) -> None:
    async def main() -> None:
        async with Proxy(server.port) as proxy, Cache(policy(proxy.url, timeout_s=0.1)) as cache:
            assert await ask(cache, "key") == ("answer", True)
            await written(cache)
            proxy.garbage = {
                "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
                "binary": struct.pack(">16I", *range(16)),
                "error": b"-LOADING Redis is loading the dataset in memory\r\n",
                "other type": b"*2\r\n:1\r\n$-1\r\n",
                "huge length": b"$999999999999\r\nx",
                "cut": None,
            }[wrong]
            proxy.cut = 5 if wrong == "cut" else None
            for number in range(6):
                assert await ask(cache, number) == ("answer", True)
            proxy.garbage, proxy.cut = None, None
            proxy.drop()
            await until_hit(cache, "key")

    asyncio.run(main())


@pytest.mark.slow
def test_wrong_credentials_are_a_level_that_is_down() -> None:
    async def main() -> None:
        with running("--requirepass", "right") as server:
            async with Cache(policy(server.url.replace("redis://", "redis://:wrong@"), timeout_s=0.3)) as cache:
                assert [(await ask(cache, "key"))[1] for _ in range(5)] == [True] * 5
                assert "WRONGPASS" in level(cache).state or "password" in level(cache).state
            async with Cache(policy(server.url.replace("redis://", "redis://:right@"))) as cache:
                await ask(cache, "key")
                await written(cache)
                assert (await ask(cache, "key"))[1] is False

    asyncio.run(main())


def test_an_invalidation_that_could_not_be_told_is_told_later_and_nothing_is_read_until_then(server: Server) -> None:
    async def main() -> None:
        async with (
            Proxy(server.port) as proxy,
            Cache(policy(proxy.url, failures=1)) as cut_off,
            Cache(policy(server.url, memory=True)) as other,
        ):
            assert await ask(cut_off, "key", "old", tags=["x"]) == ("old", True)
            await written(cut_off)
            assert await ask(other, "key") == ("old", False)
            proxy.refuse = True
            proxy.drop()
            assert await cut_off.invalidate(tags=["x"]) == 0
            assert await ask(cut_off, "key", "new", tags=["x"]) == ("new", True)
            assert level(cut_off).state != "up"
            proxy.refuse = False
            async with asyncio.timeout(PATIENCE_S):
                while level(cut_off).state != "up":
                    await ask(cut_off, "another")
                    await asyncio.sleep(0.005)
            memory = other._levels.memory
            assert memory is not None
            await until(lambda: KEY not in memory.entries)
            assert (await ask(other, "key", "new", tags=["x"]))[0] == "new"

    asyncio.run(main())


def test_who_was_away_hears_what_it_missed(server: Server) -> None:
    async def main() -> None:
        async with (
            Proxy(server.port) as proxy,
            Cache(policy(proxy.url, memory=True)) as away,
            Cache(policy(server.url, memory=True)) as other,
        ):
            for key in "ab":
                await ask(away, key, tags=[key])
            await written(away)
            proxy.refuse = True
            proxy.drop()
            await other.invalidate(tags=["a"])
            assert [(await ask(away, key))[1] for key in "ab"] == [False, False]  # it cannot know
            proxy.refuse = False
            memory = away._levels.memory
            assert memory is not None
            await until(lambda: storage_key(None, "a") not in memory.entries)
            assert [(await ask(away, key))[1] for key in "ab"] == [True, False]

    asyncio.run(main())


def test_a_redis_that_lost_everything_means_starting_afresh(server: Server) -> None:
    """Nobody knows which invalidations were lost with it."""

    async def main() -> None:
        async with Proxy(server.port) as proxy, Cache(policy(proxy.url, memory=True)) as cache:
            await cache.invalidate(tags=["x"])
            await ask(cache, "key")
            server.client().flushall()
            proxy.drop()
            memory = cache._levels.memory
            assert memory is not None
            await until(lambda: not len(memory))

    asyncio.run(main())


def test_the_host_of_a_process_hears_the_fleet_even_if_it_was_not_running(server: Server, tmp_path: Path) -> None:
    async def main() -> None:
        async with Cache(policy(server.url, host=tmp_path)) as cache:
            for key in "ab":
                await ask(cache, key, tags=[key])
            await written(cache)
        async with Cache(policy(server.url)) as other:
            await other.invalidate(tags=["a"])
        async with Cache(policy(server.url, host=tmp_path)) as cache:
            fleet = cache._levels.fleet
            assert fleet is not None
            assert fleet.epoch == 0
            await fleet.ready()
            await until(lambda: fleet.epoch == 1)
            await cache.flush()
            assert [(await ask(cache, key))[1] for key in "ab"] == [True, False]
            assert [row.hits for row in cache.statistics().levels] == [1, 0]

    asyncio.run(main())


def test_three_levels_are_filled_from_below(server: Server, tmp_path: Path) -> None:
    async def main() -> None:
        async with Cache(policy(server.url)) as elsewhere:
            await ask(elsewhere, "key", tags=["x"])
            await written(elsewhere)
        async with Cache(policy(server.url, memory=True, host=tmp_path)) as cache:
            assert (await ask(cache, "key"))[1] is False
            assert [row.hits for row in cache.statistics().levels] == [0, 0, 1]
            assert (await ask(cache, "key"))[1] is False
            await cache.flush()
        async with Cache(policy("redis://127.0.0.1:1/0", host=tmp_path)) as cache:
            assert (await ask(cache, "key"))[1] is False
            assert await cache.invalidate(tags=["x"]) == 1

    asyncio.run(main())


def test_another_order_is_followed(server: Server, tmp_path: Path) -> None:
    async def main() -> None:
        settings = policy(server.url, memory=True, host=tmp_path)
        turned = CachePolicy(
            order=("fleet", "host", "memory"), memory=settings.memory, host=settings.host, fleet=settings.fleet
        )
        async with Cache(turned) as cache:
            await ask(cache, "key")
            await written(cache)
            assert (await ask(cache, "key"))[1] is False
            assert cache.peek(KEY) is None
            found = await cache.get(KEY)
            assert found is not None
            assert found.level == "fleet"
            server.client().flushall()
            found = await cache.get(KEY)
            assert found is not None
            assert found.level == "host"

    asyncio.run(main())


@pytest.mark.slow
def test_100_tenants_asking_the_same_never_cross(server: Server, tmp_path: Path) -> None:
    async def main() -> None:
        names = [f"tenant-{number}" for number in range(100)]
        async with Cache(policy(server.url, host=tmp_path, memory=True)) as one:
            await asyncio.gather(*(ask(one, "prompt", f"for {name}", tenant=name) for name in names))
            await written(one)
        for levels in ({"memory": True}, {"host": tmp_path}, {"host": tmp_path, "memory": True}):
            async with Cache(policy(server.url, **levels)) as cache:
                got = await asyncio.gather(*(ask(cache, "prompt", "wrong", tenant=name) for name in names))
                assert got == [(f"for {name}", False) for name in names]

    asyncio.run(main())


def test_nothing_is_left_behind(server: Server) -> None:
    """No task and no connection after closing, whatever was going on."""

    async def main() -> None:
        cache = Cache(policy(server.url, memory=True))
        await ask(cache, "key")
        lease = await cache.lease(storage_key(None, "held"))
        assert lease is not None
        asked = asyncio.ensure_future(cache.get_or_compute("slow", lambda: asyncio.sleep(100.0)))
        await asyncio.sleep(0.02)
        await cache.close()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await until(lambda: len(asyncio.all_tasks()) == 1)
        client = server.client()
        await until(lambda: client.info("clients")["connected_clients"] == 1)

    asyncio.run(main())


def test_one_cache_serves_several_event_loops_in_turn(server: Server) -> None:
    cache = Cache(policy(server.url))

    async def main() -> bool:
        answer = (await ask(cache, "key"))[1]
        await written(cache)
        fleet = cache._levels.fleet
        assert fleet is not None
        await fleet.close()
        return answer

    assert [asyncio.run(main()) for _ in range(3)] == [True, False, False]


def test_the_breaker_lets_one_trial_through_and_waits_longer_each_time() -> None:
    now = [0.0]
    breaker = Breaker(2, 1.0, now_s=lambda: now[0])
    breaker.failed("a")
    assert breaker.allows()
    breaker.failed("b")
    assert (breaker.is_open, breaker.reason, breaker.opened) == (True, "b", 1)
    for wait_s in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        now[0] += wait_s - 0.001
        assert not breaker.allows()
        now[0] += 0.001
        assert breaker.allows()
        assert not breaker.allows()  # one trial
        breaker.failed("c")
    now[0] += 30.0
    assert breaker.allows()
    breaker.succeeded()
    assert (breaker.allows(), breaker.is_open) == (True, False)


def test_a_wrong_url_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"cache\.fleet\.url is wrong"):
        Cache(policy("redis://host:notaport/0"))


def test_a_lease_is_given_back_after_its_answer_is_stored(server: Server) -> None:
    """Who waits must find the answer, not a free lease, though the engine does not wait for the write."""

    async def main() -> None:
        async with Cache(policy(server.url)) as one, Cache(policy(server.url)) as two:
            lease = await one.lease(KEY)
            assert lease is not None
            waiting = asyncio.ensure_future(two.wait_for(KEY, asyncio.get_running_loop().time() + 10.0))
            await asyncio.sleep(0.01)
            one.put(KEY, "answer" * 50_000, lease=lease)
            lease.release()
            found = await waiting
            assert found is not None
            assert found.level == "fleet"

    asyncio.run(main())
