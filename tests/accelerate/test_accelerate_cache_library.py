"""The cache as a library: what is computed once, how long it is given, whose it is, what is never stored."""

import asyncio
import dataclasses
import datetime as dt
import random
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
from tests.accelerate.builders import run_virtual

from paceline.accelerate.cache import Cache, CachePolicy, MemoryPolicy, StoredReply, storage_key


class Clock:
    """Unix seconds that move when told."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Counter:
    """A computation that says how often it was made."""

    def __init__(self, answer: Any = "answer", takes_s: float = 0.0) -> None:
        self.made = 0
        self.answer = answer
        self.takes_s = takes_s

    async def __call__(self) -> Any:
        self.made += 1
        if self.takes_s:
            await asyncio.sleep(self.takes_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_an_answer_is_computed_once_and_then_given() -> None:
    async def main() -> None:
        async with Cache() as cache:
            make = Counter()
            assert [await cache.get_or_compute("key", make) for _ in range(3)] == ["answer"] * 3
            assert make.made == 1
            assert await cache.get_or_compute("other", lambda: "plain functions do too") == "plain functions do too"

    asyncio.run(main())


def test_500_equal_calls_at_once_are_one_computation() -> None:
    async def main() -> None:
        async with Cache() as cache:
            make = Counter(takes_s=0.5)
            answers = await asyncio.gather(*(cache.get_or_compute("key", make) for _ in range(500)))
            assert (set(answers), make.made) == ({"answer"}, 1)
            statistics = cache.statistics()
            assert (statistics.computed, statistics.joined) == (1, 499)

    run_virtual(main())


def test_a_caller_that_goes_away_does_not_take_the_answer_from_the_others() -> None:
    async def main() -> None:
        async with Cache() as cache:
            make = Counter(takes_s=1.0)
            first = asyncio.ensure_future(cache.get_or_compute("key", make))
            await asyncio.sleep(0.1)
            second = asyncio.ensure_future(cache.get_or_compute("key", make))
            await asyncio.sleep(0.1)
            first.cancel()
            assert await second == "answer"
            assert make.made == 1
            with pytest.raises(asyncio.CancelledError):
                await first

    run_virtual(main())


def test_when_every_caller_has_gone_the_computation_ends() -> None:
    async def main() -> None:
        async with Cache() as cache:
            make = Counter(takes_s=1.0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await cache.get_or_compute("key", make)
            await asyncio.sleep(0)
            assert len(asyncio.all_tasks()) == 1
            assert await cache.get_or_compute("key", Counter("new")) == "new"

    run_virtual(main())


def test_what_fails_is_raised_to_all_and_never_stored() -> None:
    async def main() -> None:
        async with Cache() as cache:
            failing = Counter(LookupError("no such thing"), takes_s=0.1)
            outcomes = await asyncio.gather(
                *(cache.get_or_compute("key", failing) for _ in range(3)), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [LookupError] * 3
            assert failing.made == 1
            assert await cache.get_or_compute("key", Counter("works again")) == "works again"
            assert cache.statistics().failed == 1

    run_virtual(main())


def test_a_computation_that_asks_for_itself_does_not_wait_for_itself() -> None:
    async def main() -> None:
        async with Cache() as cache:

            async def outer() -> str:
                return f"outer of {await cache.get_or_compute('key', Counter('inner'))}"

            assert await cache.get_or_compute("key", outer) == "outer of inner"

    run_virtual(main())


def test_an_answer_lives_exactly_its_ttl_and_the_levels_own_without_one() -> None:
    async def main() -> None:
        clock = Clock()
        async with Cache(CachePolicy(memory=MemoryPolicy(ttl_s=300.0)), now_s=clock) as cache:
            short, long, own = Counter(), Counter(), Counter()

            async def ask() -> tuple[int, int, int]:
                await cache.get_or_compute("short", short, ttl_s=10.0)
                await cache.get_or_compute("long", long, ttl_s=1_000.0)
                await cache.get_or_compute("own", own)
                return short.made, long.made, own.made

            assert await ask() == (1, 1, 1)
            clock.now_s += 9.999
            assert await ask() == (1, 1, 1)
            clock.now_s += 0.001
            assert await ask() == (2, 1, 1)
            clock.now_s += 290.0
            assert await ask() == (3, 1, 2)
            clock.now_s += 699.0
            assert await ask() == (4, 1, 3)

    asyncio.run(main())


def test_keys_that_python_calls_equal_are_different_questions() -> None:
    """True, 1 and 1.0 are one dictionary key; as arguments of a function they are three."""

    async def main() -> None:
        async with Cache() as cache:
            keys: list[Any] = [1, True, 1.0, "1", b"1", (1,), (True,), (1.0,), ("1",), [1], ((1,),), ([1],), None, ()]
            keys += [{"a": 1}, {"a": True}, frozenset({1}), dt.date(2026, 1, 2), "2026-01-02"]
            for number, key in enumerate(keys):
                assert await cache.get_or_compute(key, Counter(number)) == number
            assert len({storage_key(None, key) for key in keys}) == len(keys)
            assert storage_key(None, {"a": 1, "b": 2}) == storage_key(None, {"b": 2, "a": 1})

    asyncio.run(main())


def test_the_same_key_of_100_tenants_never_crosses() -> None:
    async def main() -> None:
        async with Cache() as cache:
            tenants: list[Any] = [None, "", *(f"t{i}" for i in range(50)), *(f"t{i}".encode() for i in range(50))]
            for tenant in tenants:
                await cache.get_or_compute(("key", 1), Counter(repr(tenant)), tenant=tenant)
            for tenant in tenants:
                wrong = Counter("computed anew")
                assert await cache.get_or_compute(("key", 1), wrong, tenant=tenant) == repr(tenant)
            # A tenant and key that look like another's key are still a tenant and key.
            await cache.get_or_compute(("t1", "x"), Counter("mine"))
            assert await cache.get_or_compute("x", Counter("of t1"), tenant="t1") == "of t1"
            assert await cache.invalidate(tenant="t1") == 2
            assert await cache.get_or_compute(("key", 1), Counter("new"), tenant="t1") == "new"
            assert await cache.get_or_compute(("key", 1), Counter("new"), tenant="t2") == repr("t2")

    asyncio.run(main())


@dataclasses.dataclass
class Point:
    x: int
    y: int


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Point(1, 2), "Point"),
        ((1, 2), "tuple"),
        ({1, 2}, "set"),
        (object(), "object"),
        (1 << 70, "64 bits"),
        ({"deep": [dt.datetime(2026, 1, 1, tzinfo=dt.UTC)]}, "datetime"),
        ({(1, 2): 3}, "key of type tuple"),
        ("\ud800", "surrogates"),
        (random.random, "builtin_function_or_method"),
    ],
    ids=["dataclass", "tuple", "set", "object", "int", "datetime", "dict-key", "surrogate", "function"],
)
def test_what_would_not_come_back_as_it_is_is_refused_by_name(value: object, named: str) -> None:
    async def main() -> None:
        async with Cache() as cache:
            with pytest.raises(TypeError, match=named):
                await cache.get_or_compute("key", lambda: value)

    asyncio.run(main())


def test_as_type_gives_richer_types_back() -> None:
    async def main() -> None:
        async with Cache() as cache:
            for _ in range(2):
                assert await cache.get_or_compute("p", lambda: Point(1, 2), as_type=Point) == Point(1, 2)
                got: Any = await cache.get_or_compute("t", lambda: [1, "a"], as_type=tuple[int, str])
                assert got == (1, "a")  # the same whether just computed or stored
            with pytest.raises(TypeError, match="as_type"):
                await cache.get_or_compute("q", lambda: ["a"], as_type=list[int])

    asyncio.run(main())


def test_copies_do_not_share_changes() -> None:
    async def main() -> None:
        async with Cache() as cache:
            for _ in range(3):
                answer = await cache.get_or_compute("key", lambda: {"items": [1]}, copy=True)
                assert answer == {"items": [1]}
                answer["items"].append(2)
            shared: object = await cache.get_or_compute("key", dict)
            assert shared is await cache.get_or_compute("key", dict)

    asyncio.run(main())


def test_tags_and_keys_are_invalidated_and_the_rest_stays() -> None:
    async def main() -> None:
        async with Cache() as cache:
            for key, tags in {"a": ["x"], "b": ["x", "y"], "c": ["y"], "d": []}.items():
                await cache.get_or_compute(key, Counter(key), tags=tags)
                await cache.get_or_compute(key, Counter(key), tags=tags, tenant="acme")
            assert await cache.invalidate(tags=["x"], tenant="acme") == 2
            assert await cache.invalidate(tags=["x"]) == 2
            assert await cache.invalidate(keys=["d", "unknown"]) == 1
            left = {t: [k for k in "abcd" if await _has(cache, k, t)] for t in (None, "acme")}
            assert left == {None: ["c"], "acme": ["c", "d"]}
            assert await cache.invalidate(everything=True) == 3 + 5  # what _has computed is stored too
            with pytest.raises(ValueError, match="invalidate what"):
                await cache.invalidate()
            with pytest.raises(TypeError, match="collection"):
                await cache.invalidate(tags="x")

    asyncio.run(main())


async def _has(cache: Cache, key: str, tenant: str | None) -> bool:
    make = Counter()
    await cache.get_or_compute(key, make, tenant=tenant)
    return not make.made


def test_what_was_being_computed_when_it_was_invalidated_is_not_stored() -> None:
    """Its callers get it, who asks afterwards gets a new one, at once."""

    async def main() -> None:
        async with Cache() as cache:
            old = asyncio.ensure_future(cache.get_or_compute("key", Counter("old", takes_s=1.0), tags=["x"]))
            await asyncio.sleep(0.5)
            await cache.invalidate(tags=["x"])
            assert await cache.get_or_compute("key", Counter("new", takes_s=0.1), tags=["x"]) == "new"
            assert await old == "old"
            assert await cache.get_or_compute("key", Counter("third"), tags=["x"]) == "new"

    run_virtual(main())


def test_a_stale_answer_is_given_while_one_caller_makes_a_new_one() -> None:
    async def main() -> None:
        clock = Clock()
        async with Cache(CachePolicy(stale_s=60.0), now_s=clock) as cache:
            await cache.get_or_compute("key", Counter("old"), ttl_s=10.0)
            clock.now_s += 11.0
            make = Counter("new", takes_s=1.0)
            assert [await cache.get_or_compute("key", make, ttl_s=10.0) for _ in range(5)] == ["old"] * 5
            await asyncio.sleep(2.0)
            assert await cache.get_or_compute("key", make, ttl_s=10.0) == "new"
            assert make.made == 1
            statistics = cache.statistics()
            assert (statistics.stale, statistics.refreshed) == (5, 1)
            clock.now_s += 71.0
            assert await cache.get_or_compute("key", Counter("newest"), ttl_s=10.0) == "newest"

    run_virtual(main())


def test_a_refresh_that_fails_leaves_the_stale_answer() -> None:
    async def main() -> None:
        clock = Clock()
        async with Cache(CachePolicy(stale_s=60.0), now_s=clock) as cache:
            await cache.get_or_compute("key", Counter("old"), ttl_s=10.0)
            clock.now_s += 11.0
            failing = Counter(OSError("provider down"))
            assert await cache.get_or_compute("key", failing, ttl_s=10.0) == "old"
            await asyncio.sleep(0.1)
            clock.now_s += 5.0
            assert await cache.get_or_compute("key", failing, ttl_s=10.0) == "old"
            await asyncio.sleep(0.1)
            assert (failing.made, cache.statistics().failed) == (2, 2)

    run_virtual(main())


def test_an_early_refresh_is_made_by_one_caller_before_the_end() -> None:
    """XFetch: with a draw of u the refresh comes -compute * ln(u) before the end."""

    async def main() -> None:
        clock, draws = Clock(), [0.0]
        cache = Cache(CachePolicy(early=1.0), now_s=clock, draw=lambda: draws[0])
        key = storage_key(None, "key")
        cache.put(key, "old", ttl_s=100.0, compute_s=2.0)
        clock.now_s += 99.0
        draws[0] = 0.3  # -2 ln(0.7) = 0.71 s before the end: not yet
        found = cache.peek(key)
        assert found is not None
        assert not found.wants_refresh
        draws[0] = 0.5  # -2 ln(0.5) = 1.39 s before the end
        found = cache.peek(key)
        assert found is not None
        assert (found.wants_refresh, found.is_stale, found.value) == (True, False, "old")
        found = cache.peek(key)
        assert found is not None
        assert not found.wants_refresh  # somebody is at it
        await cache.close()

    asyncio.run(main())


def test_the_engines_door_gives_replies_with_level_and_age() -> None:
    async def main() -> None:
        clock = Clock()
        async with Cache(now_s=clock) as cache:
            key = storage_key("acme", "call")
            reply = StoredReply(headers=[(b"a", b"b")], pieces=[b"1", b"2"], stream=True, model="m", stored_at=5.0)
            assert cache.peek(key) is None
            assert await cache.get(key) is None
            assert cache.put(key, reply, tags=["x"]) is None
            clock.now_s += 2.5
            found = cache.peek(key)
            assert found is not None
            assert (found.value, found.level, found.age_s) == (reply, "memory", 2.5)
            assert cache.statistics().patterns[0].name == "m"
            assert await cache.invalidate(storage_keys=[key]) == 1
            with pytest.raises(ValueError, match="32 bytes"):
                cache.put(b"short", reply)

    asyncio.run(main())


def test_a_lease_keeps_others_waiting_until_the_answer_is_there() -> None:
    async def main() -> None:
        async with Cache() as cache:
            key = storage_key(None, "call")
            lease = await cache.lease(key)
            assert lease is not None
            assert await cache.lease(key) is None
            loop = asyncio.get_running_loop()
            waiting = asyncio.ensure_future(cache.wait_for(key, loop.time() + 60.0))
            late = asyncio.ensure_future(cache.wait_for(key, loop.time() + 0.5))
            await asyncio.sleep(1.0)
            cache.put(key, "answer", lease=lease)
            lease.release()
            lease.release()
            found = await waiting
            assert found is not None
            assert (found.value, await late) == ("answer", None)
            with await cache.lease(key) or pytest.fail("not free"):
                gave_up = asyncio.ensure_future(cache.wait_for(storage_key(None, "unknown"), loop.time() + 60.0))
                assert await gave_up is None

    run_virtual(main())


def test_what_was_put_under_an_older_lease_than_an_invalidation_is_not_stored() -> None:
    async def main() -> None:
        async with Cache() as cache:
            key = storage_key(None, "call")
            lease = await cache.lease(key)
            await cache.invalidate(tags=["x"])
            cache.put(key, "old", tags=["x"], lease=lease)
            assert cache.peek(key) is None
            cache.put(key, "other", tags=["y"], lease=lease)
            assert cache.peek(key) is not None

    run_virtual(main())


def test_statistics_say_what_hit_and_none_where_nothing_was_asked() -> None:
    async def main() -> None:
        clock = Clock()
        async with Cache(now_s=clock) as cache:
            empty = cache.statistics()
            assert (empty.hit_rate, empty.levels[0].hit_rate, empty.requests) == (None, None, 0)
            assert empty.recurrence.ttl_s is None
            for user in (1, 2):
                for _ in range(4):
                    await cache.get_or_compute(f"user:{user}:profile", Counter(), tags=["users"], ttl_s=100.0)
                    clock.now_s += 30.0
            told = cache.statistics()
            assert (told.requests, told.hits, told.misses, told.hit_rate) == (8, 6, 2, 0.75)
            (level,) = told.levels
            assert (level.hits, level.misses, level.puts, level.entries) == (6, 2, 2, 2)
            (pattern,), (tag,) = told.patterns, told.tags
            assert (pattern.name, pattern.hits, pattern.misses, pattern.hit_rate) == ("user:*:profile", 6, 2, 0.75)
            assert (tag.name, tag.hits, tag.misses) == ("users", 6, 2)
            assert told.ages == [(32.0, 2), (64.0, 2), (128.0, 2)]
            clock.now_s += 200.0
            await cache.get_or_compute("user:1:profile", Counter(), tags=["users"])
            assert cache.statistics().patterns[0].expired == 1

    asyncio.run(main())


def test_fast_hits_are_all_counted() -> None:
    """Hits that only touch the entry reach the statistics when somebody looks, or the entry leaves."""

    async def main() -> None:
        clock = Clock()
        async with Cache(now_s=clock) as cache:
            for _ in range(1_001):
                await cache.get_or_compute("key", Counter())
                clock.now_s += 0.001
            await cache.invalidate(keys=["key"])
            told = cache.statistics()
            assert (told.hits, told.misses, told.patterns[0].hits) == (1_000, 1, 1_000)
            assert told.recurrence.asks == 1_001

    asyncio.run(main())


def test_a_decorated_function_shares_answers_by_its_arguments() -> None:
    async def main() -> None:
        async with Cache() as cache:
            calls: list[tuple[Any, ...]] = []

            @cache.cached(ttl_s=60.0, tags=lambda a, b=2, **_: [f"a{a}"])
            async def add(a: int, b: int = 2, *, c: int = 3) -> int:
                """Add them."""
                calls.append((a, b, c))
                return a + b + c

            assert [await add(1), await add(1, 2), await add(b=2, a=1, c=3), await add(1, c=4)] == [6, 6, 6, 7]
            assert calls == [(1, 2, 3), (1, 2, 4)]
            assert (add.__name__, add.__doc__) == ("add", "Add them.")
            assert await add.forget(1) == 1
            await add(1)
            assert len(calls) == 3
            assert await cache.invalidate(tags=["a1"]) == 2

            @cache.cached(key=lambda user: user["id"], tenant=lambda user: user["org"])
            async def profile(user: dict[str, Any]) -> str:
                return f"{user['org']}/{user['id']}"

            assert await profile({"id": 1, "org": "a"}) == "a/1"
            assert await profile({"id": 1, "org": "b"}) == "b/1"
            assert await profile({"id": 1, "org": "a", "more": object()}) == "a/1"
            with pytest.raises(TypeError, match="coroutine functions"):
                cache.cached()(lambda: 1)  # type: ignore[arg-type, return-value]
            with pytest.raises(TypeError, match="key must be made of plain values"):
                await add(object())

    asyncio.run(main())


def test_wrong_arguments_are_said_at_once() -> None:
    async def main() -> None:
        async with Cache() as cache:
            with pytest.raises(ValueError, match="ttl_s must be above 0"):
                await cache.get_or_compute("key", Counter(), ttl_s=0)
            with pytest.raises(ValueError, match="64 tags"):
                await cache.get_or_compute("key", Counter(), tags=[str(i) for i in range(65)])
            with pytest.raises(TypeError, match="tenant"):
                await cache.get_or_compute("key", Counter(), tenant=5)  # type: ignore[call-overload]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"order": ["disk"]}, "cache.order knows memory, host and fleet; got 'disk'"),
        ({"order": ["memory", "memory"]}, "each level once"),
        ({"memory": {"max_bytes": 0}}, "cache.memory.max_bytes must be at least 1; got 0"),
        ({"host": {"ttl_s": 0}}, "cache.host.ttl_s must be above 0; got 0"),
        ({"fleet": {"url": "http://x"}}, "cache.fleet.url must begin with redis://"),
        ({"stale_s": -1}, "cache.stale_s must not be negative; got -1"),
        ({"hots": {}}, "unknown field `hots`"),
    ],
)
def test_a_wrong_policy_names_the_field(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(settings, CachePolicy)


def test_the_defaults_are_those_of_the_requirement_and_scale_with_speed() -> None:
    """W3.1: memory 5 min and ~100 MB, Redis 1 h and ~1 GB, disk 24 h and ~10 GB."""
    policy = CachePolicy()
    assert (policy.memory.ttl_s, policy.memory.max_bytes) == (300.0, 100_000_000)
    assert (policy.fleet.ttl_s, policy.fleet.max_bytes) == (3_600.0, 1_000_000_000)
    assert (policy.host.ttl_s, policy.host.max_bytes) == (86_400.0, 10_000_000_000)
    fast = policy.at_speed(10.0)
    assert (fast.memory.ttl_s, fast.host.ttl_s, fast.fleet.ttl_s, fast.wait_s) == (30.0, 8_640.0, 360.0, 6.0)
    assert fast.fleet.timeout_s == policy.fleet.timeout_s


def test_the_cache_outlives_an_event_loop() -> None:
    """One cache at module level, used by one `asyncio.run` after another."""
    cache = Cache()

    def asked(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(work())

    async def hang() -> None:
        task = asyncio.ensure_future(cache.get_or_compute("slow", Counter(takes_s=100.0)))
        await asyncio.sleep(0)
        assert not task.done()

    asked(hang)
    assert asked(lambda: cache.get_or_compute("slow", Counter("new"))) == "new"
    asked(cache.close)
