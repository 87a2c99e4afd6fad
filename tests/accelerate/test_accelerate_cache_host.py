"""The host level on a real folder: shared, full, read-only, damaged, forked, and with killed neighbours."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paceline.accelerate.cache import Cache, CachePolicy, FleetPolicy, HostPolicy, MemoryPolicy, storage_key
from paceline.accelerate.cache.host_leases import HostLeases
from paceline.accelerate.cache.host_store import HostStore
from paceline.accelerate.cache.selection import Selection

lmdb = pytest.importorskip("lmdb")
MB = 1_000_000


def policy(folder: Path, *, memory: bool = False, **host: Any) -> CachePolicy:
    settings = {"enabled": True, "path": str(folder), "max_bytes": 4 * MB, **host}
    return CachePolicy(memory=MemoryPolicy(enabled=memory), host=HostPolicy(**settings))


def level(cache: Cache) -> Any:
    return cache.statistics().levels[-1]


async def ask(cache: Cache, key: Any, answer: Any = "answer", **more: Any) -> tuple[Any, bool]:
    """The answer, and whether it had to be computed."""
    made = []

    def make() -> Any:
        made.append(answer)
        return answer

    return await cache.get_or_compute(key, make, **more), bool(made)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Any]:
    """Runs a program in another process; `cache` is its cache over the same folder, its last line is returned."""
    running: list[subprocess.Popen[str]] = []

    def start(body: str) -> subprocess.Popen[str]:
        program = (
            "import asyncio, os, sys\nfrom pathlib import Path\n"
            "from tests.accelerate.test_accelerate_cache_host import ask, policy\n"
            "from paceline.accelerate.cache import Cache, storage_key\n"
            f"async def main():\n    cache = Cache(policy(Path({str(tmp_path)!r}), memory=True))\n"
            + "".join(f"    {line}\n" for line in body.splitlines())
            + "    await cache.close()\nasyncio.run(main())\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_answers_survive_the_process_and_keep_their_age(tmp_path: Path) -> None:
    async def main() -> None:
        now = [1_000_000.0]
        async with Cache(policy(tmp_path), now_s=lambda: now[0]) as cache:
            assert await ask(cache, "key", {"a": [1, b"x", None]}, ttl_s=100.0) == ({"a": [1, b"x", None]}, True)
            assert await ask(cache, "key") == ({"a": [1, b"x", None]}, False)  # before it is on disk
        async with Cache(policy(tmp_path), now_s=lambda: now[0]) as cache:
            now[0] += 99.0
            assert (await ask(cache, "key"))[1] is False
            now[0] += 1.0
            assert (await ask(cache, "key"))[1] is True
            assert (level(cache).hits, level(cache).misses) == (1, 1)

    asyncio.run(main())


def test_what_the_host_has_is_brought_into_memory(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cache(policy(tmp_path)) as cache:
            await ask(cache, "key", tags=["x"])
        async with Cache(policy(tmp_path, memory=True)) as cache:
            for _ in range(3):
                assert (await ask(cache, "key"))[1] is False
            memory, host = cache.statistics().levels
            assert (memory.hits, host.hits) == (2, 1)
            found = cache.peek(storage_key(None, "key"))
            assert found is not None
            assert found.level == "memory"
            assert await cache.invalidate(tags=["x"]) == 1  # the tags came with it
            assert (await ask(cache, "key"))[1] is True

    asyncio.run(main())


def test_memory_asks_the_host_again_when_its_own_time_is_over(tmp_path: Path) -> None:
    """Without a time of its own an answer stays 5 minutes in memory, a day on the host."""

    async def main() -> None:
        now = [1_000_000.0]
        async with Cache(policy(tmp_path, memory=True), now_s=lambda: now[0]) as cache:
            await ask(cache, "key")
            now[0] += 86_000.0
            assert (await ask(cache, "key"))[1] is False
            assert [row.hits for row in cache.statistics().levels] == [0, 1]
            now[0] += 399.0
            assert (await ask(cache, "key"))[1] is False
            now[0] += 1.0
            assert (await ask(cache, "key"))[1] is True  # not longer than a day altogether

    asyncio.run(main())


def test_two_caches_of_one_process_share_the_folder_and_hear_each_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cache(policy(tmp_path, memory=True)) as one, Cache(policy(tmp_path, memory=True)) as two:
            for key in ("a", "b", "c"):
                await ask(one, key, tags=[key], tenant="t")
            await one.flush()
            for key in ("a", "b", "c"):
                assert (await ask(two, key, tenant="t"))[1] is False
            assert await one.invalidate(tags=["a"], keys=["unknown"]) == 1
            assert await one.invalidate(keys=["b"], tenant="t") == 1
            assert [(await ask(two, key, tenant="t"))[1] for key in ("a", "b", "c")] == [True, True, False]
            assert await two.invalidate(tenant="t") == 3
            assert [(await ask(one, key, tenant="t"))[1] for key in ("a", "b", "c")] == [True, True, True]

    asyncio.run(main())


def test_an_answer_begun_before_anothers_invalidation_is_not_stored(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cache(policy(tmp_path, memory=True)) as one, Cache(policy(tmp_path, memory=True)) as two:
            begun, go = asyncio.Event(), asyncio.Event()

            async def slow() -> str:
                begun.set()
                await go.wait()
                return "old"

            old = asyncio.ensure_future(one.get_or_compute("key", slow, tags=["x"]))
            await begun.wait()
            await two.invalidate(tags=["x"])
            go.set()
            assert await old == "old"
            await one.flush()
            assert await ask(two, "key", "new", tags=["x"]) == ("new", True)
            await two.flush()
            assert await ask(one, "key", "newer", tags=["x"]) == ("new", False)

    asyncio.run(main())


@pytest.mark.slow
def test_another_process_gives_and_hears(tmp_path: Path, other: Any) -> None:
    """Answers, invalidations and leases cross processes."""
    child = other(
        "print(await ask(cache, 'theirs', 'from the child', tags=['x']), flush=True)\n"
        "await cache.flush()\nprint('stored', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(await ask(cache, 'theirs', 'again', tags=['x']), flush=True)\n"
        "sys.stdin.readline()"
    )

    async def main() -> None:
        async with Cache(policy(tmp_path, memory=True)) as cache:
            assert line(child) == "('from the child', True)"
            assert line(child) == "stored"
            assert await ask(cache, "theirs") == ("from the child", False)
            assert await cache.invalidate(tags=["x"]) == 1
            child.stdin.write("\n")
            child.stdin.flush()
            assert line(child) == "('again', True)"  # its memory heard of it
            child.communicate("\n")

    asyncio.run(main())


@pytest.mark.slow
def test_one_process_computes_and_the_others_take_its_answer(tmp_path: Path, other: Any) -> None:
    child = other(
        "async def slow():\n"
        "    print('computing', flush=True)\n"
        "    await asyncio.to_thread(sys.stdin.readline)\n"
        "    return 'made once'\n"
        "print(await cache.get_or_compute('key', slow), flush=True)"
    )
    assert line(child) == "computing"

    async def main() -> None:
        async with Cache(policy(tmp_path)) as cache:
            waiting = asyncio.ensure_future(ask(cache, "key", "made twice"))
            await asyncio.sleep(0.02)
            assert await cache.lease(storage_key(None, "key")) is None
            child.stdin.write("\n")
            child.stdin.flush()
            assert await waiting == ("made once", False)
            assert cache.statistics().waited == 1
            child.communicate()

    asyncio.run(main())


@pytest.mark.slow
def test_when_the_computing_process_is_killed_another_goes_on(tmp_path: Path, other: Any) -> None:
    """kill -9 while it holds the lease and in the middle of writing: its lease, its lock and its place are free."""
    child = other(
        "async def slow():\n"
        "    for n in range(100):\n"
        "        cache.put(storage_key(None, n), 'x' * 1000)\n"
        "    print('computing', flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "await cache.get_or_compute('key', slow)"
    )
    assert line(child) == "computing"

    async def main() -> None:
        async with Cache(policy(tmp_path)) as cache:
            waiting = asyncio.ensure_future(ask(cache, "key", "made here"))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            child.send_signal(signal.SIGKILL)
            assert await waiting == ("made here", True)
            for number in range(100):
                assert (await ask(cache, number, "x" * 1000))[0] == "x" * 1000
            await cache.flush()
            assert level(cache).errors == 0

    asyncio.run(main())


@pytest.mark.slow
def test_a_writer_killed_at_any_time_leaves_a_usable_folder(tmp_path: Path, other: Any) -> None:
    """Processes that write as fast as they can, killed one after the other: what is read is always right."""

    async def main() -> None:
        async with Cache(policy(tmp_path)) as cache:
            for round_number in range(2):
                child = other(
                    "print('on', flush=True)\nn = 0\nwhile True:\n    n += 1\n"
                    "    cache.put(storage_key(None, n % 50), [n % 50] * 200, tags=['x'])\n"
                    "    if n % 20 == 0:\n        await cache.flush()\n"
                    "    if n % 70 == 0:\n        await cache.invalidate(tags=['x'])"
                )
                assert line(child) == "on"
                for number in range(50 * (round_number + 1)):
                    key = number % 50
                    assert (await ask(cache, key, [key] * 200))[0] == [key] * 200
                child.send_signal(signal.SIGKILL)
                child.wait()
                await cache.flush()
            assert level(cache).state == "up"
            await cache.invalidate(everything=True)
            assert (await ask(cache, 1, [1] * 200))[1] is True

    asyncio.run(main())


def test_a_full_level_drops_what_dies_soonest_and_never_passes_its_budget(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cache(policy(tmp_path, max_bytes=MB)) as cache:
            value = "x" * 10_000
            for number in range(200):
                await ask(cache, number, value, ttl_s=10_000.0 - number, tags=["all"])
                if number % 10 == 9:
                    await cache.flush()
                    assert level(cache).bytes <= MB
            told = level(cache)
            assert told.errors == 0
            assert told.evicted > 100
            held = [n for n in range(200) if (await ask_held(cache, n))]
            assert held[:40] == list(range(40))  # what is stored later here dies sooner
            assert 40 < len(held) < 100
            assert (await ask(cache, "huge", "x" * 500_000))[1] is True
            assert (await ask(cache, "huge", "x" * 500_000))[1] is True  # larger than a part of it should be
            assert await cache.invalidate(tags=["all"]) == len(held)

    asyncio.run(main())


async def ask_held(cache: Cache, key: Any) -> bool:
    return cache.peek(storage_key(None, key)) is not None


@pytest.mark.slow
def test_a_reader_that_never_ends_fills_the_map_and_only_storing_stops(tmp_path: Path) -> None:
    """LMDB cannot reuse pages an old reader may see: MapFullError, tried again with room made, then given up."""

    async def main() -> None:
        async with Cache(policy(tmp_path, max_bytes=MB)) as cache:
            await ask(cache, "kept", "kept")
            await cache.flush()
            store = cache._levels.host._shared.store  # type: ignore[union-attr]
            stuck = await asyncio.to_thread(store.env.begin)
            for number in range(2_500):
                await ask(cache, number, "x" * 10_000)
                if number % 20 == 0:
                    await cache.flush()
            await cache.flush()
            assert level(cache).errors > 0
            assert level(cache).state == "up"
            assert (await ask(cache, "another"))[0] == "answer"
            stuck.abort()
            for number in range(40):
                await ask(cache, ("after", number), "x" * 10_000)
                await cache.flush()
            assert (await ask(cache, ("after", 39), "x" * 10_000))[1] is False

    asyncio.run(main())


def test_a_folder_that_cannot_be_written_means_no_host_level(tmp_path: Path) -> None:
    async def main() -> None:
        blocked = tmp_path / "file"
        blocked.write_text("not a folder")
        async with Cache(policy(blocked, memory=True)) as cache:
            assert [(await ask(cache, "key"))[1] for _ in range(3)] == [True, False, False]
            assert level(cache).state.startswith("off: cannot use")
            assert await cache.invalidate(keys=["key"]) == 1
            assert await cache.lease(storage_key(None, "key")) is not None

    asyncio.run(main())


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_means_no_host_level(tmp_path: Path) -> None:
    async def main() -> None:
        tmp_path.chmod(0o500)
        try:
            async with Cache(policy(tmp_path)) as cache:
                assert (await ask(cache, "key"))[1] is True
                assert level(cache).state.startswith("off: cannot use")
        finally:
            tmp_path.chmod(0o700)

    asyncio.run(main())


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "middle", "other boot"])
def test_a_damaged_folder_is_started_afresh(tmp_path: Path, damage: str) -> None:
    async def main() -> None:
        async with Cache(policy(tmp_path)) as cache:
            for number in range(50):
                await ask(cache, number, [number] * 500)
        data = tmp_path / "data.mdb"
        whole = data.read_bytes()
        if damage == "garbage":
            data.write_bytes(os.urandom(len(whole)))
        elif damage == "cut":
            data.write_bytes(whole[: len(whole) // 2])
        elif damage == "empty":
            data.write_bytes(b"")
        elif damage == "middle":  # the bytes of values, where the check sum must notice
            data.write_bytes(whole.replace(bytes([7] * 100), bytes([8] * 100)))
        else:
            (tmp_path / "guard").write_text("another-boot 123456")
        async with Cache(policy(tmp_path)) as cache:
            for number in range(50):
                assert (await ask(cache, number, [number] * 500))[0] == [number] * 500
            await cache.flush()
            assert level(cache).state == "up"
            assert (await ask(cache, 7, [7] * 500)) == ([7] * 500, False)

    asyncio.run(main())


def test_a_forked_child_opens_the_folder_for_itself(tmp_path: Path) -> None:
    """The parent's environment, lease and lock are not touched by the child's using and leaving the cache."""

    async def parent() -> Cache:
        cache = Cache(policy(tmp_path, memory=True))
        await ask(cache, "key", "parents")
        await cache.flush()
        assert await cache.lease(storage_key(None, "held")) is not None
        return cache

    async def child(cache: Cache) -> bool:
        host = cache._levels.host
        assert host is not None
        found = host.get(storage_key(None, "key"))
        refused = await cache.lease(storage_key(None, "held")) is None and host.is_leased(storage_key(None, "held"))
        stored = await ask(cache, "childs", "childs")
        await cache.close()
        return found is not None and found.value == "parents" and refused and stored == ("childs", True)

    cache = asyncio.run(parent())
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if asyncio.run(child(cache)) else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    async def after() -> None:
        assert await ask(cache, "childs") == ("childs", False)
        host = cache._levels.host
        assert host is not None
        assert host.is_leased(storage_key(None, "held"))
        await cache.close()

    asyncio.run(after())


def test_a_process_far_behind_the_log_drops_everything(tmp_path: Path) -> None:
    store = HostStore(tmp_path, MB)
    one = Selection(keys=frozenset([b"k" * 32]), id=b"first")
    assert store.forget(one) == 0
    assert store.heard_of(0) == (1, [one])
    assert store.heard_of(1) == (1, [])
    assert store.forget(one) == 0  # told by the fleet too: done already
    assert store.heard_of(1) == (1, [])
    for number in range(1_100):
        store.forget(Selection(tags=frozenset([b"t" * 16]), id=str(number).encode()))
    last, selections = store.heard_of(1)
    assert (last, [s.everything for s in selections]) == (1_101, [True])
    assert len(store.heard_of(1_000)[1]) == 101
    store.close()


def test_the_lease_of_a_key_is_one_processs_at_a_time(tmp_path: Path) -> None:
    leases = HostLeases(tmp_path)
    key, another = b"a" * 32, b"b" * 32
    assert leases.acquire(key)
    assert not leases.acquire(key)
    assert leases.is_held(key)
    assert leases.acquire(another)
    leases.release(key)
    assert not leases.is_held(key)
    leases.close()


def test_without_lmdb_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(Exception, match=r"pip install 'paceline\[host\]'"):
        Cache(policy(tmp_path))
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(Exception, match=r"pip install 'paceline\[redis\]'"):
        Cache(CachePolicy(fleet=FleetPolicy(enabled=True)))


def test_encrypted_answers_need_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file there is no clear text; another secret, or none, finds nothing; the right one does."""
    pytest.importorskip("cryptography")

    def encrypted(variable: str | None) -> CachePolicy:
        host = HostPolicy(enabled=True, path=str(tmp_path), max_bytes=MB)
        return CachePolicy(memory=MemoryPolicy(enabled=False), host=host, encrypt_key_env=variable)

    monkeypatch.setenv("SECRET_A", "ab" * 32)
    monkeypatch.setenv("SECRET_B", "cd" * 32)
    monkeypatch.setenv("SECRET_SHORT", "cd")

    async def main() -> None:
        async with Cache(encrypted("SECRET_A")) as cache:
            await ask(cache, "key", "a very secret answer " * 50)
        assert b"very secret" not in (tmp_path / "data.mdb").read_bytes()
        for variable in ("SECRET_B", None):
            async with Cache(encrypted(variable)) as cache:
                assert cache.peek(storage_key(None, "key")) is None
                assert (level(cache).unreadable, level(cache).errors, level(cache).misses) == (1, 0, 1)
        async with Cache(encrypted("SECRET_A")) as cache:
            assert (await ask(cache, "key"))[1] is False
        for variable, said in {"SECRET_SHORT": "holds something else", "SECRET_NONE": "not set"}.items():
            with pytest.raises(Exception, match=said):
                Cache(encrypted(variable))

    asyncio.run(main())


def test_compressed_answers_are_smaller_and_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        host = HostPolicy(enabled=True, path=str(tmp_path), max_bytes=MB)
        async with Cache(CachePolicy(order=("host",), host=host, compress_min_bytes=1_000)) as cache:
            text = "the same words again and again " * 1_000
            assert [(await ask(cache, "key", text)) for _ in range(2)] == [(text, True), (text, False)]
            assert level(cache).written_bytes < len(text) / 10

    asyncio.run(main())
