"""`paceline serve` as a process: announce, refuse, drain, flush, and the words it uses."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.gateway.builders import COMPLETION, PLAIN
from tests.wire.builders import run, scripted, until

from paceline.errors import ConfigError
from paceline.gateway.config import check_host
from paceline.store.folder import create_run, open_run
from paceline.wire.client import HttpClient

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "paceline", "serve"]
CALL = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}'


@contextlib.asynccontextmanager
async def serving(*options: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, HttpClient]]:
    """A gateway process and a client of it; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "--port", "0", "--json", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    announced = json.loads(await process.stdout.readline())
    client = HttpClient(announced["url"])
    assert announced["url"] == f"http://127.0.0.1:{announced['port']}"
    try:
        yield process, client
    finally:
        await client.close()
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ask(client: HttpClient) -> tuple[int, bytes]:
    reply = await client.request("POST", "/v1/chat/completions", [], CALL)
    return reply.status, await reply.read()


def test_sigterm_drains_flushes_and_exits_0(tmp_path: Path) -> None:
    """A call in flight is answered, its span is on disk, nothing is on stderr."""
    folder = create_run(tmp_path, "r")

    async def main() -> None:
        gate = asyncio.Event()
        async with (
            scripted(scripts=[PLAIN, [gate, *PLAIN]]) as upstream,
            serving("--upstream", upstream.url + "/v1", "--run", str(folder.path)) as (process, client),
        ):
            assert await ask(client) == (200, COMPLETION)
            last = asyncio.create_task(ask(client))
            await until(lambda: len(upstream.requests) == 2)
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.05)
            gate.set()
            assert await last == (200, COMPLETION)
            _, errors = await process.communicate()
            assert (process.returncode, errors) == (0, b"")

    run(main())
    spans = open_run(folder.path).spans()
    assert [(span.service, span.kind, span.model) for span in spans] == [("gateway", "llm", "gpt-4o-mini")] * 2
    start_s = (spans[0].start_ns - folder.info.start_ns) / 1e9
    assert 0 < start_s < 60


def test_a_policy_file_is_applied(tmp_path: Path) -> None:
    """The second equal call is a hit."""
    policy = tmp_path / "policy.toml"
    policy.write_text("[cache]\nenabled = true\n")

    async def main() -> None:
        async with (
            scripted(*PLAIN) as upstream,
            serving("--upstream", upstream.url, "--policy", str(policy)) as (_, client),
        ):
            assert await ask(client) == await ask(client) == (200, COMPLETION)
            assert len(upstream.requests) == 1

    run(main())


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--upstream", "nonsense"], 2, "not a server's URL: 'nonsense'"),
        (["--upstream", "http://127.0.0.1:1", "--host", "0.0.0.0"], 2, "refusing to listen on 0.0.0.0"),
        (["--upstream", "http://127.0.0.1:1", "--policy", "/none.toml"], 2, "cannot read the policy /none.toml"),
        (["--upstream", "http://127.0.0.1:1", "--run", "/none"], 3, "/none is not a run"),
        (["--upstream", "http://127.0.0.1:1", "--timeout", "0"], 2, "--timeout must be above 0"),
    ],
    ids=["url", "host", "policy", "run", "timeout"],
)
def test_mistakes_are_one_sentence(options: list[str], code: int, words: str) -> None:
    """Exit code of the design, one line on stderr, no traceback, nothing announced."""
    result = subprocess.run(
        [*COMMAND, "--port", "0", *options], capture_output=True, text=True, timeout=20, check=False
    )
    assert (result.returncode, result.stdout) == (code, "")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "fine"),
    [(host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")]
    + [(host, False) for host in ("0.0.0.0", "::", "192.168.1.4", "example.com")],
)
def test_only_loopback_without_being_told(host: str, fine: bool) -> None:
    """Any address others can reach needs keys, or the flag."""
    check_host(host, keys=False, insecure_bind=True)
    check_host(host, keys=True, insecure_bind=False)
    if fine:
        check_host(host, keys=False, insecure_bind=False)
    else:
        with pytest.raises(ConfigError, match="paceline keys add"):
            check_host(host, keys=False, insecure_bind=False)
