"""Limits kept by several processes together: in virtual time through a store in memory, and through a real Redis."""

import asyncio
import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.accelerate.redis_server import Proxy, Server, running
from tests.accelerate.refusing import Provider, Seen, SlidingWindow, TokenBucket, offer
from tests.patience import PATIENCE_S
from tests.virtual_loop import now_s, run_virtual

from paceline.accelerate.limits import AdaptivePolicy, Ask, Limits, LimitsPolicy, Signal
from paceline.accelerate.limits.bucket import Rate
from paceline.accelerate.limits.redis_store import RedisStore
from paceline.accelerate.limits.shared import KEEP_S, Answer, Grant, StoreDown, Want

NEVER = math.inf


class MemoryStore:
    """What the script in Redis does, in Python and virtual time; `down` and `latency_s` as told."""

    name = "memory"

    def __init__(self, latency_s: float = 0.001) -> None:
        self.is_up = True
        self.down = False
        self.latency_s = latency_s
        self.exchanges = 0
        self._tats: dict[tuple[str, int], float] = {}
        self._held: dict[str, float] = {}

    def may_try(self) -> bool:
        return True

    async def exchange(self, gate: str, wants: Sequence[Want], hold_s: float) -> Answer:
        self.exchanges += 1
        await asyncio.sleep(self.latency_s)
        if self.down:
            self.is_up = False
            raise StoreDown
        self.is_up = True
        if hold_s > 0:
            self._held[gate] = max(self._held.get(gate, 0.0), now_s() + hold_s)
        grants = [self._grant((gate, index), want) for index, want in enumerate(wants)]
        return Answer(grants, max(0.0, self._held.get(gate, 0.0) - now_s()))

    async def close(self) -> None:
        return

    def _grant(self, key: tuple[str, int], want: Want) -> Grant:
        unit_s, burst, at_s = 1 / want.rate.per_s, want.rate.burst, now_s()
        tat = self._tats.get(key, at_s) - want.back * unit_s
        tat = max(tat, at_s, at_s + (burst - want.at_most) * unit_s)
        units = min(want.units, max(0.0, math.floor((at_s + KEEP_S - tat) / unit_s + burst)))
        if units < want.least:
            due_s = tat + (min(want.least, burst) - burst) * unit_s - at_s
            units = want.least if due_s <= 60.0 else 0.0
        else:
            due_s = tat + (min(units, burst) - burst) * unit_s - at_s
        self._tats[key] = tat + units * unit_s
        return Grant(units, max(0.0, due_s))


def ask_of(tokens: int = 0, deadline_s: float = 1e9) -> Ask:
    return Ask(tenant=b"t", key=b"k", model="m", tokens=tokens, deadline_s=deadline_s)


def within(admitted_s: list[float], per_s: float, burst: float) -> bool:
    """True when no window holds more than the stated bound."""
    admitted_s = sorted(admitted_s)
    return all(
        later - earlier + 1 <= per_s * (admitted_s[later] - admitted_s[earlier] + KEEP_S) + burst + 1e-6
        for earlier, later in itertools.combinations(range(len(admitted_s)), 2)
    )


@given(
    st.floats(2, 100),
    st.integers(1, 10),
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 0.3), st.booleans()), min_size=1, max_size=50),
)
@example(2.0, 1, [(1, 0.0, False), (0, 0.25, False), (0, 0.25, False), (0, 0.25, True), (1, 0.0, True)])
@example(8.0, 1, [(0, 0.0, False), (1, 0.25, False), (0, 0.0, False)])
def test_all_together_never_pass_more_than_rate_and_burst(
    per_s: float, burst: int, calls: list[tuple[int, float, bool]]
) -> None:
    """Three processes, any arrivals, some give up: in any window at most rate x (window + KEEP_S) + burst."""
    admitted: list[float] = []

    async def main() -> None:
        store = MemoryStore()
        clock = asyncio.get_running_loop().time
        policy = LimitsPolicy(requests_per_s=per_s, burst=burst, max_wait_s=1e6)
        processes = [Limits(policy, now_s=clock, shared=store) for _ in range(3)]

        async def one(limits: Limits, patience_s: float | None) -> None:
            ask = ask_of()
            async with asyncio.timeout(patience_s):
                permit = limits.try_admit(ask) or await limits.admit(ask)
                admitted.append(now_s())
                permit.leave()

        tasks = []
        for index, gap_s, is_patient in calls:
            await asyncio.sleep(gap_s)
            tasks.append(asyncio.create_task(one(processes[index], None if is_patient else 0.05)))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(admitted) >= sum(is_patient for _, _, is_patient in calls)
        assert all((limits.in_flight, limits.waiting) == (0, 0) for limits in processes)
        for limits in processes:
            await limits.close()

    run_virtual(main())
    assert within(admitted, per_s, burst)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["window", "bucket", "tokens"])
def test_three_processes_use_the_quota_together(kind: str) -> None:
    """Each is offered more than its share; together >= 95 % of the quota, hardly a refusal, and few round trips."""
    tokens = (100, 500, 1000) if kind == "tokens" else (1,)
    provider = Provider(jitter_s=0.02, service_s=0.1)
    if kind == "tokens":
        provider.tokens = TokenBucket(5000, 300_000)
        policy = LimitsPolicy(tokens_per_min=300_000, adaptive=AdaptivePolicy(enabled=True))
    else:
        provider.requests = SlidingWindow(600, 60.0) if kind == "window" else TokenBucket(10, 60)
        policy = LimitsPolicy(requests_per_min=600, adaptive=AdaptivePolicy(enabled=True))

    async def main() -> MemoryStore:
        store = MemoryStore()
        clock = asyncio.get_running_loop().time
        processes = [Limits(policy, now_s=clock, shared=store) for _ in range(3)]
        seen = [Seen() for _ in processes]
        async with asyncio.TaskGroup() as tasks:
            for index, limits in enumerate(processes):
                tasks.create_task(
                    offer(limits, provider, seen[index], per_s=8, for_s=110, patience_s=10, tokens=tokens, seed=index)
                )
        assert all(each.late_s <= 1e-3 for each in seen)
        assert sum(len(each.refused) for each in seen) <= 0.01 * len(provider.accepted)
        for limits in processes:
            await limits.close()
        return store

    store = run_virtual(main())
    used = [size for at_s, size in provider.accepted if 50 <= at_s < 110]
    assert sum(used) >= 0.95 * 60 * (5000 if kind == "tokens" else 10)
    assert store.exchanges < 3 * len(provider.accepted)


def test_a_refusal_of_one_process_holds_the_others() -> None:
    """They hear of it with their next fetch."""
    admitted: list[float] = []

    async def main() -> None:
        store = MemoryStore()
        clock = asyncio.get_running_loop().time
        policy = LimitsPolicy(requests_per_s=10, burst=1, adaptive=AdaptivePolicy(enabled=True))
        first, second = (Limits(policy, now_s=clock, shared=store) for _ in range(2))
        permit = await first.admit(ask_of())
        permit.heard(Signal(status=429, retry_after_s=5.0))
        permit.leave()
        await asyncio.sleep(0.2)
        (await second.admit(ask_of())).leave()
        admitted.append(now_s())
        await first.close()
        await second.close()

    run_virtual(main())
    assert 5.0 <= admitted[0] <= 5.3


def test_a_store_that_goes_down_costs_nobody_more_than_a_moment() -> None:
    """Calls go on at this process's part of the limit, and at the whole when the store is back."""

    async def main() -> None:
        store = MemoryStore(latency_s=0.05)
        clock = asyncio.get_running_loop().time
        policy = LimitsPolicy(requests_per_s=10, burst=2, processes=2)
        limits = Limits(policy, now_s=clock, shared=store)

        async def pass_in_s(calls: int) -> float:
            start_s = now_s()
            for _ in range(calls):
                ask = ask_of()
                (limits.try_admit(ask) or await limits.admit(ask)).leave()
            return now_s() - start_s

        assert await pass_in_s(20) == pytest.approx(1.8, abs=0.2)
        store.down = True
        assert await pass_in_s(20) == pytest.approx(4.0, abs=0.3)  # half the rate
        store.down = False
        await asyncio.sleep(0.2)
        await pass_in_s(4)
        assert store.is_up
        assert await pass_in_s(20) == pytest.approx(2.0, abs=0.3)
        assert (limits.in_flight, limits.waiting) == (0, 0)
        await limits.close()

    run_virtual(main())


@pytest.fixture(scope="module")
def redis_server() -> Iterator[Server]:
    with running() as server:
        yield server


async def exchange(store: RedisStore, gate: str, *wants: Want, hold_s: float = 0.0) -> Answer:
    return await store.exchange(gate, wants, hold_s)


def store_of(url: str, clock: list[float] | None = None, timeout_s: float = 5.0) -> RedisStore:
    loop = asyncio.get_running_loop()
    return RedisStore(url, timeout_s=timeout_s, now_s=loop.time if clock is None else lambda: clock[0])


def test_the_script_hands_out_bursts_then_turns_and_takes_back(redis_server: Server) -> None:
    """A limit so slow that the clock does not matter: 1 an hour, burst 5."""
    hourly = Rate(1 / 3600, 5.0)

    async def main() -> None:
        store = store_of(redis_server.url)
        client = redis_server.client()
        try:
            assert (await exchange(store, "a", Want(hourly, 3, 1, 0, NEVER))).grants[0] == Grant(3, 0)
            assert (await exchange(store, "a", Want(hourly, 9, 1, 0, NEVER))).grants[0] == Grant(2, 0)
            refused = (await exchange(store, "a", Want(hourly, 9, 1, 0, NEVER))).grants[0]
            assert refused.units == 0
            assert refused.due_s == pytest.approx(3600, abs=5)
            assert (await exchange(store, "a", Want(hourly, 9, 1, 2, NEVER))).grants[0] == Grant(2, 0)  # 2 came back
            assert (await exchange(store, "b", Want(hourly, 9, 1, 0, 2.0))).grants[0] == Grant(2, 0)  # heard: 2 left
            soon = Rate(0.1, 1.0)
            assert (await exchange(store, "c", Want(soon, 1, 1, 0, NEVER))).grants[0] == Grant(1, 0)
            reserved = (await exchange(store, "c", Want(soon, 1, 1, 0, NEVER))).grants[0]
            assert reserved.units == 1
            assert reserved.due_s == pytest.approx(10, abs=2)
            assert (await exchange(store, "d", hold_s=30.0)).held_s == pytest.approx(30, abs=5)
            assert (await exchange(store, "d", hold_s=3.0)).held_s > 20  # a shorter hold does not end a longer one
            large = (await exchange(store, "e", Want(Rate(100.0, 50.0), 500, 500, 0, NEVER))).grants[0]
            assert large == Grant(500, 0)  # larger than the burst: a full bucket, then debt
            keys = client.keys("paceline:limits:*")
            assert isinstance(keys, list)
            assert keys
            assert all(int(str(client.pttl(key))) > 0 for key in keys)
        finally:
            await store.close()

    asyncio.run(main())


def test_the_script_agrees_with_its_twin(redis_server: Server) -> None:
    """The store in memory, on which the virtual tests rest, hands out the same as Redis."""
    rate = Rate(1e-4, 7.0)

    async def main() -> None:
        store, twin = store_of(redis_server.url), MemoryStore(latency_s=0.0)
        try:
            for units, least, back, at_most in itertools.product((0, 1, 4), (0, 1, 3), (-1, 0, 2), (NEVER, 3.0)):
                want = Want(rate, units, min(units, least), back, at_most)
                ours, theirs = await exchange(store, "twin", want), await twin.exchange("twin", [want], 0.0)
                assert ours.grants[0].units == theirs.grants[0].units
                assert ours.grants[0].due_s == pytest.approx(theirs.grants[0].due_s, rel=0.01, abs=5.0)
        finally:
            await store.close()

    asyncio.run(main())


@pytest.mark.slow
def test_several_clients_of_a_real_redis_keep_one_limit(redis_server: Server) -> None:
    """Three times its own tasks, connections and permits: together never above the bound."""
    admitted: list[float] = []

    async def main() -> None:
        policy = LimitsPolicy(requests_per_s=200, burst=20, shared=redis_server.url, shared_timeout_s=5.0)
        processes = [Limits(policy) for _ in range(3)]

        async def one(limits: Limits) -> None:
            ask = Ask(tenant=b"t", key=b"real", model="m")
            permit = limits.try_admit(ask) or await limits.admit(ask)
            admitted.append(now_s())
            permit.leave()

        await asyncio.gather(*(one(limits) for limits in processes for _ in range(60)))
        for limits in processes:
            await limits.close()

    asyncio.run(main())
    assert len(admitted) == 180
    assert within(admitted, 200, 20)


def damage(proxy: Proxy, fault: str) -> None:
    match fault:
        case "stalled":
            proxy.flowing.clear()
        case "garbage":
            proxy.garbage = b"*3\r\n$3\r\nfoo\r\n:x\r\n"
        case "cut":
            proxy.cut = 3
        case "refused":
            proxy.refuse = True
            proxy.drop()
        case "gone":
            proxy.drop()
            proxy._server.close()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["stalled", "garbage", "cut", "refused", "gone"])
def test_a_broken_redis_makes_limits_local_never_wrong_and_heals(redis_server: Server, fault: str) -> None:
    """Every call passes; afterwards the store is used again."""
    clock = [0.0]

    async def main() -> None:
        async with Proxy(redis_server.port) as proxy:
            store = store_of(proxy.url, clock, timeout_s=0.05 if fault == "stalled" else PATIENCE_S)
            policy = LimitsPolicy(requests_per_s=1000, burst=100)
            limits = Limits(policy, shared=store)

            async def one() -> None:
                ask = Ask(tenant=b"t", key=fault.encode(), model="m")
                (limits.try_admit(ask) or await limits.admit(ask)).leave()

            async def until_up() -> None:
                async with asyncio.timeout(PATIENCE_S):
                    await one()
                    while not store.is_up:
                        clock[0] += 10.0  # it is asked again
                        await one()
                        await asyncio.sleep(0.005)

            await until_up()  # not at once, when this machine stalls
            damage(proxy, fault)
            async with asyncio.timeout(PATIENCE_S):
                while store.is_up:  # until it has spent its permits and asks
                    await one()
                    await asyncio.sleep(0.001)
                for _ in range(20):
                    await one()
            assert store.failures >= 1
            if fault == "gone":
                await limits.close()
                return
            proxy.flowing.set()
            proxy.garbage = proxy.cut = None
            proxy.refuse = False
            await until_up()
            assert (limits.in_flight, limits.waiting) == (0, 0)
            await limits.close()

    asyncio.run(main())


def test_a_redis_that_forgot_the_script_gets_it_again(redis_server: Server) -> None:
    """After a restart or a fail-over."""

    async def main() -> None:
        store = store_of(redis_server.url)
        want = Want(Rate(1.0, 100.0), 1, 1, 0, NEVER)
        try:
            await exchange(store, "s", want)
            redis_server.client().script_flush()
            assert (await exchange(store, "s", want)).grants[0].units == 1
        finally:
            await store.close()

    asyncio.run(main())
