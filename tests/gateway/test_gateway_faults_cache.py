"""Cache levels that misbehave below a gateway: slower at worst, never wrong, and nothing is held."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.gateway.builders import COMPLETION, EVENTS, JSON, PLAIN, SHARING, STREAM, bench
from tests.wire.builders import STREAM_HEAD, Step, chunk, ok, run

from paceline.accelerate import leading
from paceline.accelerate.cache import CachePolicy, FleetPolicy, HostPolicy
from paceline.accelerate.policy import Policy
from paceline.errors import UpstreamBroken


@contextlib.asynccontextmanager
async def redis_that(does: str) -> AsyncIterator[str]:
    """URL of something that is no proper Redis."""
    held: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while await reader.read(65536):
                if does == "is slow":
                    await asyncio.sleep(2)
                    writer.write(b"+OK\r\n")
                elif does == "talks nonsense":
                    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                elif does == "resets":
                    writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        held.add(task)
        task.add_done_callback(held.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    if does == "is down":
        listener.close()
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        listener.close()
        for task in list(held):
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.parametrize("does", ["is down", "is slow", "talks nonsense", "resets"])
def test_a_broken_redis_makes_no_answer_wrong(does: str) -> None:
    """Calls at once, plain and streamed, are answered by the provider and from memory; nothing is left behind."""

    async def main() -> None:
        async with redis_that(does) as url:
            cache = CachePolicy(enabled=True, fleet=FleetPolicy(enabled=True, url=url))
            async with bench(scripts=[PLAIN, STREAM, PLAIN], policy=Policy(single_flight=True, cache=cache)) as b:
                answers = await asyncio.gather(*(b.say() for _ in range(20)))
                assert {(status, body) for status, _, body in answers} == {(200, COMPLETION)}
                assert len(b.upstream.requests) == 1
                assert (await b.say(stream=True))[::2] == (200, b"".join(EVENTS))
                assert (await b.say())[:2] == (200, "hit")
                await b.settled()

    run(main())


@pytest.mark.parametrize("path", ["/proc/paceline", "/dev/null/cache"], ids=["read-only", "no folder"])
def test_a_host_level_that_cannot_be_written_is_left_alone(path: str) -> None:
    """The gateway answers, and says in its statistics why the level is off."""
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc, where not even root makes a folder")

    async def main() -> None:
        cache = CachePolicy(enabled=True, host=HostPolicy(enabled=True, path=path))
        async with bench(*PLAIN, policy=Policy(single_flight=True, cache=cache)) as b:
            assert (await b.say())[:2] == (200, "miss")
            assert (await b.say())[:2] == (200, "hit")
            assert b.engine.cache is not None
            (host,) = (row for row in b.engine.cache.statistics().levels if row.name == "host")
            assert host.state.startswith("off: cannot use")
            await b.settled()

    run(main())


_FULL = """
import asyncio, resource, sys
from paceline.accelerate.cache import Cache, CachePolicy, HostPolicy, MemoryPolicy

resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # what a full disk says to a write

async def main():
    policy = CachePolicy(memory=MemoryPolicy(enabled=False), host=HostPolicy(enabled=True, path=sys.argv[1]))
    async with Cache(policy) as cache:
        for number in range(40):
            assert await cache.get_or_compute(number, lambda: str(number) * 20_000) == str(number) * 20_000
            await cache.flush()
        print(cache.statistics().computed)

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_full_disk_under_the_host_level_fails_no_call(tmp_path: Path) -> None:
    """Whatever can no longer be written is computed; the process neither fails nor dies of a signal."""
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path / "cache")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == 40


@pytest.mark.parametrize("stream", [False, True])
def test_an_endless_answer_is_not_gathered_without_end(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shared or kept is held in memory, so it has a bound: then the call fails, and the next succeeds."""
    assert leading.MOST_BYTES == 64 << 20
    monkeypatch.setattr(leading, "MOST_BYTES", 1_000_000)
    piece = b"x" * 50_000
    head = STREAM_HEAD if stream else ok(b"", JSON).replace(b"content-length: 0", b"content-length: 1000000000")

    async def main() -> None:
        endless: list[Step] = [head, *([chunk(piece) if stream else piece] * 40)]
        async with bench(scripts=[endless, PLAIN], policy=SHARING) as b:
            if stream:
                reply = await b.ask(stream=True)
                with pytest.raises(UpstreamBroken):
                    await reply.forward(lambda data: None)
            else:
                status, _, body = await b.say()
                assert status == 502
                assert b"sent more than" in body
            assert (await b.say("next"))[:2] == (200, "miss")
            await b.settled()

    run(main())
