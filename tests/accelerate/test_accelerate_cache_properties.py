"""Laws of the cache: it equals no cache, the budget holds, envelopes round-trip, advice is exact."""

import asyncio
import tempfile
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples

from paceline.accelerate.cache import Cache, CachePolicy, HostPolicy, MemoryPolicy, StoredReply, storage_key
from paceline.accelerate.cache.envelope import Sealer
from paceline.accelerate.cache.keys import partition_of
from paceline.accelerate.cache.memory import Entry, MemoryLevel
from paceline.accelerate.cache.recurrence import CANDIDATES_S, Recurrence
from paceline.accelerate.cache.selection import Selection

text = st.text(st.characters(exclude_categories=["Cs"]))
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | text
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner),
    max_leaves=12,
)
quick = examples(40)
KEYS, TAGS, TENANTS = ["a", "b", "c"], ["x", "y"], [None, "t1", "t2"]
ask = st.tuples(
    st.just("ask"), st.sampled_from(KEYS), st.sampled_from(TENANTS), st.sampled_from([None, 1.0, 50.0, 400.0])
)
steps = st.lists(
    ask
    | ask
    | st.tuples(st.just("wait"), st.floats(0.0, 500.0))
    | st.tuples(st.just("tags"), st.sets(st.sampled_from(TAGS), min_size=1), st.sampled_from(TENANTS))
    | st.tuples(st.just("keys"), st.sets(st.sampled_from(KEYS), min_size=1), st.sampled_from(TENANTS))
    | st.just(("everything",)),
    max_size=40,
)
POLICIES = {
    "memory": CachePolicy(),
    "tiny memory": CachePolicy(memory=MemoryPolicy(max_bytes=2_200)),
    "stale and early": CachePolicy(stale_s=100.0, early=5.0),
    "no level": CachePolicy(order=()),
}


class _World:
    """A pure function of tenant and key, and a fake clock."""

    def __init__(self, policy: CachePolicy) -> None:
        self.now_s = 1_000_000.0
        self.cache = Cache(policy, now_s=lambda: self.now_s)

    async def run(self, operations: list[tuple[Any, ...]]) -> None:
        for operation, *what in operations:
            if operation == "ask":
                key, tenant, ttl_s = what
                truth = [key, tenant, {"of": [key] * 20}]
                tags = [TAGS[KEYS.index(key) % 2]]
                got: object = await self.cache.get_or_compute(
                    key, partial(list, truth), ttl_s=ttl_s, tags=tags, tenant=tenant
                )
                assert got == truth
            elif operation == "wait":
                self.now_s += what[0]
            elif operation == "tags":
                await self.cache.invalidate(tags=what[0], tenant=what[1])
            elif operation == "keys":
                await self.cache.invalidate(keys=what[0], tenant=what[1])
            else:
                await self.cache.invalidate(everything=True)
            self._check()
        told = self.cache.statistics()
        assert told.requests == sum(1 for operation, *_ in operations if operation == "ask")

    def _check(self) -> None:
        level = self.cache._levels.memory
        if level is not None:
            assert level.used_bytes <= level.max_bytes
            assert level.used_bytes == sum(entry.size for entry in level.entries.values())
            assert set(level.named.values()) == set(level.entries.values())


@pytest.mark.parametrize("name", POLICIES)
@quick
@given(operations=steps)
def test_a_cache_equals_no_cache(name: str, operations: list[tuple[Any, ...]]) -> None:
    """Whatever is asked, invalidated and waited for, a pure function's answers are right, and every ask is counted."""

    async def main() -> None:
        world = _World(POLICIES[name])
        await world.run(operations)
        await world.cache.close()

    asyncio.run(main())


@pytest.mark.slow
@quick
@given(operations=steps)
def test_a_cache_on_the_host_equals_no_cache(operations: list[tuple[Any, ...]]) -> None:
    pytest.importorskip("lmdb")

    async def main(folder: str) -> None:
        host = HostPolicy(enabled=True, path=folder, max_bytes=1_000_000)
        world = _World(CachePolicy(host=host, memory=MemoryPolicy(max_bytes=2_200, ttl_s=20.0)))
        await world.run(operations)
        await world.cache.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))


@quick
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3_000)), max_size=60), st.integers(1, 20_000))
def test_the_byte_budget_is_never_exceeded(puts: list[tuple[int, int]], budget: int) -> None:
    level = MemoryLevel(budget)
    for number, size in puts:
        key = storage_key(None, number)
        level.put(Entry(key, "x", size, created_s=0, expires_s=1, dead_s=1, tags=(key[:16],)))
        assert level.used_bytes <= budget
    level.forget(Selection(everything=True))
    assert (level.used_bytes, len(level), level._tagged) == (0, 0, {})


@quick
@given(plain, st.booleans(), st.booleans(), st.lists(st.binary(min_size=16, max_size=16), max_size=3).map(tuple))
def test_what_is_sealed_opens_again(value: Any, compress: bool, encrypt: bool, tags: tuple[bytes, ...]) -> None:
    sealer = _sealer(compress, encrypt)
    key = storage_key("t", "k")
    data = sealer.seal(key, value, created_s=12.5, ttl_s=None, compute_s=0.5, tags=tags)
    opened = sealer.open(key, data)
    assert opened is not None
    assert (opened.value, opened.created_s, opened.ttl_s, opened.compute_s, opened.tags) == (value, 12.5, 0, 0.5, tags)
    assert sealer.open(storage_key("other", "k"), data) is None


@quick
@given(st.lists(st.binary(max_size=50)), st.lists(st.tuples(st.binary(), st.binary())), st.booleans(), st.booleans())
def test_a_reply_round_trips(
    pieces: list[bytes], headers: list[tuple[bytes, bytes]], compress: bool, encrypt: bool
) -> None:
    reply = StoredReply(status=200, headers=headers, pieces=pieces, stream=True, cost_usd=0.25, model="m", tags=["x"])
    sealer, key = _sealer(compress, encrypt), storage_key(None, 1)
    opened = sealer.open(key, sealer.seal(key, reply, created_s=1.0, ttl_s=2.0, compute_s=0, tags=()))
    assert opened is not None
    assert opened.value == reply


@quick
@given(plain, st.data(), st.booleans(), st.booleans())
def test_a_damaged_envelope_is_a_miss(value: Any, data: st.DataObject, compress: bool, encrypt: bool) -> None:
    """Cut anywhere, or any byte changed: nothing comes out, and nothing is raised."""
    sealer, key = _sealer(compress, encrypt), storage_key(None, 1)
    whole = sealer.seal(key, value, created_s=1.0, ttl_s=None, compute_s=0, tags=(b"t" * 16,))
    assert sealer.open(key, whole[: data.draw(st.integers(0, len(whole) - 1))]) is None
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    assert sealer.open(key, bytes(changed)) is None
    assert sealer.open(key, data.draw(st.binary(max_size=80))) is None


def _sealer(compress: bool, encrypt: bool) -> Sealer:
    if encrypt:
        pytest.importorskip("cryptography")
    return Sealer(compress_min_bytes=10 if compress else None, key=b"k" * 32 if encrypt else None)


@quick
@given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
def test_storage_keys_are_equal_only_for_equal_questions(t1: str, k1: str, t2: str, k2: str) -> None:
    same = (t1, k1) == (t2, k2)
    assert (storage_key(t1, k1) == storage_key(t2, k2)) == same
    assert storage_key(t1, k1).startswith(partition_of(t1))
    assert (partition_of(t1) == partition_of(t2)) == (t1 == t2)


@quick
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0.0, 90_000.0)), min_size=1, max_size=80))
def test_advice_is_what_each_ttl_would_have_given(asks: list[tuple[int, float]]) -> None:
    """With all keys followed the hit rate of each candidate is exactly that of a cache with that time to live."""
    recurrence = Recurrence()
    fills: list[dict[int, float]] = [{} for _ in CANDIDATES_S]
    hits = [0] * len(CANDIDATES_S)
    now_s = 0.0
    for key, gap_s in asks:
        now_s += gap_s
        recurrence.asked(storage_key(None, key), now_s)
        for i, ttl_s in enumerate(CANDIDATES_S):
            if key in fills[i] and now_s < fills[i][key] + ttl_s:
                hits[i] += 1
            else:
                fills[i][key] = now_s
    assert [row.hit_rate for row in recurrence.advise().candidates] == [h / len(asks) for h in hits]


def test_sampled_advice_is_near_that_of_all_keys() -> None:
    """10,000 keys asked three times, the second ask after 20 s, the third after 200 s: 512 followed keys tell it."""
    recurrence = Recurrence(most_keys=512)
    for at_s in (0.0, 20.0, 220.0):
        for number in range(10_000):
            recurrence.asked(storage_key(None, number), at_s)
    advice = recurrence.advise()
    rates = {row.ttl_s: row.hit_rate for row in advice.candidates}
    assert advice.keys == 512
    assert 0.03 < advice.sampled_share < 0.08
    assert rates[15] == pytest.approx(0.0, abs=0.05)
    assert rates[30] == pytest.approx(1 / 3, abs=0.05)
    assert rates[300] == pytest.approx(2 / 3, abs=0.05)
    assert advice.ttl_s == 300
