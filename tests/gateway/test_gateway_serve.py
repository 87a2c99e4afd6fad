"""`paceline serve` as a process: announce, refuse, drain, flush, and the words it uses."""

import asyncio
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from tests.gateway.builders import COMPLETION, PLAIN
from tests.gateway.serving import COMMAND, serving
from tests.patience import PATIENCE_S
from tests.wire.builders import run, scripted, until

from paceline.errors import ConfigError
from paceline.gateway.config import check_host
from paceline.gateway.keys.file import add_key, new_key
from paceline.store.folder import create_run, open_run

pytestmark = pytest.mark.slow


def test_sigterm_drains_flushes_and_exits_0(tmp_path: Path) -> None:
    """A call in flight is answered, its span is on disk, nothing is on stderr."""
    folder = create_run(tmp_path, "r")

    async def main() -> None:
        gate = asyncio.Event()
        async with (
            scripted(scripts=[PLAIN, [gate, *PLAIN]]) as upstream,
            serving("--upstream", upstream.url + "/v1", "--run", str(folder.path)) as g,
        ):
            assert await g.ask() == (200, COMPLETION)
            last = asyncio.create_task(g.ask())
            await until(lambda: len(upstream.requests) == 2)
            g.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.05)
            gate.set()
            assert await last == (200, COMPLETION)
            _, errors = await g.process.communicate()
            assert (g.process.returncode, errors) == (0, b"")

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
            serving("--upstream", upstream.url, "--policy", str(policy)) as g,
        ):
            assert await g.ask() == await g.ask() == (200, COMPLETION)
            assert len(upstream.requests) == 1

    run(main())


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--upstream", "nonsense"], 2, "not a server's URL: 'nonsense'"),
        (["--upstream", "http://127.0.0.1:1", "--host", "0.0.0.0"], 2, "refusing to listen on 0.0.0.0"),
        (["--upstream", "http://127.0.0.1:1", "--policy", "/none.toml"], 2, "cannot read the policy /none.toml"),
        (["--upstream", "http://127.0.0.1:1", "--run", "/proc"], 3, "/proc is not a run"),
        (["--upstream", "http://127.0.0.1:1", "--timeout", "0"], 2, "--timeout must be above 0"),
        (["--workers", "0"], 2, "the command line is wrong: workers must be between 1 and 256; got 0"),
        (["--config", "/none.toml"], 2, "cannot read the configuration /none.toml"),
        (["--config", "a", "--check", "b"], 2, "leave one out"),
        (["--keys", "/none.toml"], 2, "cannot read the keys /none.toml"),
    ],
    ids=["url", "host", "policy", "run", "timeout", "workers", "config", "check", "keys"],
)
def test_mistakes_are_one_sentence(options: list[str], code: int, words: str) -> None:
    """Exit code of the design, one line on stderr, no traceback, nothing announced."""
    result = subprocess.run(
        [*COMMAND, "--port", "0", *options], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (result.returncode, result.stdout) == (code, "")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use_is_one_sentence(workers: str) -> None:
    """It names the port and the way out, alone and with workers."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [*COMMAND, "--port", str(port), "--workers", workers, "--upstream", "http://127.0.0.1:1"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in result.stderr
    assert result.stderr.count("\n") == 1


def test_it_says_what_is_on_and_how_to_use_it(tmp_path: Path) -> None:
    """Where, which providers, who may call, and what to point at it; no secret. Ctrl-C is exit 130."""
    presented, key = new_key("alice")
    add_key(tmp_path / "keys.toml", key)
    config = tmp_path / "gateway.toml"
    config.write_text('keys_file = "keys.toml"\n[providers.openai]\nkey_env = "PACELINE_TEST_SECRET"\n')
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--config", str(config)],
        env={**os.environ, "PACELINE_TEST_SECRET": "sk-from-the-environment"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    while "Ctrl-C" not in said:
        line = process.stdout.readline()
        assert line
        said += line
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (130, "paceline: stopped\n")
    url = said.partition("paceline gateway on ")[2].partition("\n")[0]
    for words in (
        "OpenAI https://api.openai.com with PACELINE_TEST_SECRET, Anthropic https://api.anthropic.com",
        "1 key (alice); no credential for Anthropic, Gemini",
        f"  OPENAI_BASE_URL={url}/v1\n",
        f"  ANTHROPIC_BASE_URL={url}\n",
        f"  GOOGLE_GEMINI_BASE_URL={url}\n",
    ):
        assert words in said
    assert not any(secret in said for secret in ("sk-from-the-environment", presented, key.hash))


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
