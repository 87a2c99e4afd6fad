"""The memory level: which entry leaves, and which are found by key, by name and by tag."""

from paceline.accelerate.cache.memory import Entry, MemoryLevel
from paceline.accelerate.cache.selection import Selection


def entry(name: str, size: int = 100, tags: tuple[bytes, ...] = ()) -> Entry:
    key = name.encode().ljust(32, b".")
    return Entry(key, f"value of {name}", size, created_s=0.0, expires_s=9.0, dead_s=9.0, tags=tags, name=name)


SIZE = entry("a").size


def test_the_least_recently_used_leaves_first() -> None:
    """Reading an entry moves it to the end; that is the reader's work, one call on the dictionary."""
    level = MemoryLevel(2 * SIZE)
    first, second = entry("a"), entry("b")
    assert level.put(first)
    assert level.put(second)
    level.entries.move_to_end(first.key)
    level.put(entry("c"))
    assert sorted(level.named) == ["a", "c"]  # type: ignore[type-var]
    assert (level.evicted, level.used_bytes, len(level)) == (1, 2 * SIZE, 2)


def test_what_is_larger_than_the_level_is_not_kept_and_empties_nothing() -> None:
    level = MemoryLevel(2 * SIZE)
    level.put(entry("a"))
    assert not level.put(entry("b", 100_000))
    assert (sorted(level.named), level.too_large) == (["a"], 1)  # type: ignore[type-var]


def test_a_second_put_takes_the_place_of_the_first() -> None:
    level = MemoryLevel(10 * SIZE)
    level.put(entry("a", tags=(b"x",)))
    level.put(entry("a", 50, tags=(b"y",)))
    assert level.used_bytes == entry("a", 50, tags=(b"y",)).size
    assert level.forget(Selection(tags=frozenset([b"x"]))) == 0
    assert level.forget(Selection(tags=frozenset([b"y"]))) == 1
    assert (level.used_bytes, level.named) == (0, {})


def test_who_counts_hits_is_told_of_each_entry_that_leaves() -> None:
    gone: list[object] = []
    level = MemoryLevel(2 * SIZE, lambda left: gone.append(left.name))
    for name in "abc":
        level.put(entry(name))
    level.forget(Selection(keys=frozenset([entry("b").key])))
    assert gone == ["a", "b"]
