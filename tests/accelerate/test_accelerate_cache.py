"""MemoryCache: a byte budget, an age limit, least recently used out first."""

from hypothesis import given
from hypothesis import strategies as st

from paceline.accelerate.cache import MemoryCache, StoredReply


def reply(size: int, name: bytes = b"x") -> StoredReply:
    return StoredReply(headers=[], pieces=[name * size], stream=False)


def size_of_one() -> int:
    cache = MemoryCache(1_000_000, 60.0)
    cache.put(b"a", reply(100))
    return cache.used_bytes


SIZE = size_of_one()


def test_gives_back_what_was_stored_until_it_is_too_old() -> None:
    """An entry lives exactly its ttl."""
    now = [0.0]
    cache = MemoryCache(10 * SIZE, 60.0, lambda: now[0])
    cache.put(b"a", reply(100))
    now[0] = 59.999
    assert cache.get(b"a") == reply(100)
    now[0] = 60.0
    assert cache.get(b"a") is None
    assert (len(cache), cache.used_bytes) == (0, 0)


def test_the_least_recently_used_leaves_first() -> None:
    """Reading an entry keeps it."""
    cache = MemoryCache(2 * SIZE, 60.0)
    cache.put(b"a", reply(100))
    cache.put(b"b", reply(100))
    cache.get(b"a")
    cache.put(b"c", reply(100))
    assert [key for key in (b"a", b"b", b"c") if cache.get(key)] == [b"a", b"c"]
    assert cache.evicted == 1


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    """One huge answer does not empty the cache."""
    cache = MemoryCache(2 * SIZE, 60.0)
    cache.put(b"a", reply(100))
    cache.put(b"b", reply(100_000))
    assert cache.get(b"a") is not None
    assert cache.get(b"b") is None


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.integers(0, 2000), st.booleans())))
def test_the_budget_holds_and_a_hit_is_what_was_put_last(steps: list[tuple[bytes, int, bool]]) -> None:
    """Whatever happens, memory stays within the budget, and hits are never an older answer."""
    cache, last = MemoryCache(2 * SIZE + 2500, 60.0), {}
    for key, size, write in steps:
        if write:
            last[key] = reply(size, key)
            cache.put(key, last[key])
        else:
            found = cache.get(key)
            assert found is None or found == last[key]
        assert cache.used_bytes <= cache.max_bytes
    held = [found for key in last if (found := cache.get(key))]
    assert (cache.used_bytes == 0) == (not held)
    assert cache.used_bytes >= sum(found.size_bytes for found in held)
