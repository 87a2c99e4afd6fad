"""A configuration: read, checked, put into words, replaced while calls are under way."""

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway.builders import EVENTS, PLAIN
from tests.gateway.keyed import bearer
from tests.gateway.serving import CHAT, eventually, serving
from tests.patience import PATIENCE_S
from tests.wire.builders import STREAM_END, STREAM_HEAD, Step, chunk, run, scripted, until

from paceline.accelerate.cache.policy import CachePolicy
from paceline.accelerate.policy import RECOMMENDED, Policy
from paceline.cli import main as cli
from paceline.clock import RunClock
from paceline.errors import ConfigError
from paceline.gateway.config import GatewayConfig, ProviderSettings, Sources, credentials, policy_of
from paceline.gateway.config_text import described
from paceline.gateway.keys.file import Key, add_key, new_key, revoke_key
from paceline.gateway.keys.table import Table
from paceline.gateway.lifecycle.reload import Composition, needs_restart
from paceline.gateway.pages import Pages
from paceline.wire.http import HttpRequest, Reply

WHOLE = """
keys_file = "keys.toml"

[server]
host = "127.0.0.1"
port = 0
workers = 3
drain_s = 10
access_log = "-"

[providers.openai]
url = "https://example.com/v1/"
key_env = "PACELINE_TEST_SECRET"

[policy]
single_flight = true
[policy.cache]
enabled = true
"""


def load(folder: Path, text: str, **options: Any) -> GatewayConfig:
    file = folder / "gateway.toml"
    file.write_text(text)
    return Sources(config=str(file), **options).load()


def test_one_file_says_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the command line says it better; paths are relative to the file."""
    monkeypatch.setenv("PACELINE_TEST_SECRET", "sk-from-the-environment")
    _, key = new_key("alice", budget_usd_per_day=1.0)
    add_key(tmp_path / "keys.toml", key)
    config = load(tmp_path, WHOLE, overrides={"workers": 2, "first_byte_s": 7.5})
    assert (config.server.workers, config.server.drain_s, config.server.first_byte_s) == (2, 10.0, 7.5)
    assert config.policy.single_flight
    assert config.policy.cache.enabled
    assert config.keys == [key]
    assert config.url_of("openai") == "https://example.com"
    assert config.url_of("anthropic") == "https://api.anthropic.com"
    assert credentials(config, os.environ) == {"openai": (b"authorization", b"Bearer sk-from-the-environment")}
    assert config.spent_file == str(tmp_path / "keys.toml.spent.json")
    words = described(config)
    assert "OpenAI https://example.com with PACELINE_TEST_SECRET" in words
    assert "1 key (alice)" in words
    assert "sk-from" not in words
    assert key.hash not in words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nport = 70000", r"port must be between 0 and 65535; got 70000 - at `\$.server`"),
        ("[server]\nworkers = 0", "workers must be between 1 and 256; got 0"),
        ("[server]\ndrain_s = -1", "drain_s must be at least 0; got -1"),
        ("[server]\nprot = 1", "`prot`"),
        ("[server]\nhost = 5", r"`\$.server.host`"),
        ("[providers.grok]\n", "the providers are openai, anthropic, gemini"),
        ('[providers.openai]\nurl = "ftp://x"', "not a server's URL: 'ftp://x'"),
        ('[providers.openai]\nurl = "https://me:secret@x"', "put the credential into key_env"),
        ('[providers.openai]\nkey_env = "PACELINE_TEST_NOT_SET"', "variable PACELINE_TEST_NOT_SET, which is not set"),
        ('[providers.openai]\nkey_file = "none"', r"the file /.*/none, which cannot be read: No such file"),
        ('[providers.openai]\nkey_file = "."', "which cannot be read: Is a directory"),
        ('[providers.openai]\nkey_file = "k"\nkey_env = "K"', "key_env and key_file contradict each other"),
        ("[policy.cache]\nttl_s = 0", "wrong: "),
        ('keys_file = "none.toml"', r"cannot read the keys .*none\.toml"),
        ('[server]\nhost = "0.0.0.0"', "refusing to listen on 0.0.0.0 without keys"),
        ("[[keys]]\nname = 5", r"`\$.keys\[0\].name`"),
        ("server", "is wrong: "),
    ],
)
def test_mistakes_name_the_file_and_the_field(tmp_path: Path, text: str, words: str) -> None:
    """One sentence, and no secret in it."""
    with pytest.raises(ConfigError, match=words) as failure:
        load(tmp_path, text)
    assert "\n" not in str(failure.value)
    assert "secret" not in str(failure.value)


def test_options_and_file_do_not_contradict_each_other(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("single_flight = true\n")
    policy = str(tmp_path / "policy.toml")
    with pytest.raises(ConfigError, match=r"--policy and \[policy\] of .*gateway.toml both say it"):
        load(tmp_path, "[policy]\nsingle_flight = true", policy=policy)
    with pytest.raises(ConfigError, match=r"--upstream and \[providers\]"):
        load(tmp_path, '[providers.openai]\nurl = "http://x"', upstream="http://y")
    assert load(tmp_path, "", policy=policy).policy == Policy(single_flight=True)
    with pytest.raises(ConfigError, match="command line is wrong: workers must be"):
        load(tmp_path, "", overrides={"workers": 1000})


def test_without_a_policy_it_does_what_helps_everybody(tmp_path: Path) -> None:
    """Unless it records, or an empty policy says otherwise. Limits are divided by the processes."""
    assert load(tmp_path, "").policy == RECOMMENDED
    assert load(tmp_path, "[policy]").policy == load(tmp_path, "", passes_on=True).policy == Policy()
    config = load(tmp_path, "[server]\nworkers = 4\n[policy.limits]\nconcurrency = 40\n")
    assert policy_of(config).limits.processes == 4
    assert "40" in described(config)
    elsewhere = msgspec.structs.replace(config.policy.limits, processes=12)
    config = msgspec.structs.replace(config, policy=msgspec.structs.replace(config.policy, limits=elsewhere))
    assert policy_of(config).limits.processes == 12


def test_a_credential_goes_to_its_own_provider_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment elsewhere has to say what it is sent."""
    monkeypatch.setenv("PACELINE_TEST_SECRET", "sk-x")
    text = (
        '[providers.openai]\nkey_env = "PACELINE_TEST_SECRET"\n'
        '[[policy.routing.deployments]]\nname = "own"\nmodel = "m"\nurl = "http://10.0.0.1:8000/v1"\n'
    )
    with pytest.raises(ConfigError, match=r"own would be sent the credential of providers\.openai"):
        load(tmp_path, text)
    assert load(tmp_path, text + "keyless = true\n").policy.routing.deployments[0].keyless


def test_check_says_what_a_configuration_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0 and a few lines, or exit 2 and one; nothing is started."""
    file = tmp_path / "gateway.toml"
    file.write_text("[policy]\nsingle_flight = true\n")
    assert cli(["serve", "--check", str(file)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{file} is right\n")
    assert "single_flight" in said
    file.write_text("[policy]\nsingle_fight = true\n")
    assert cli(["serve", "--check", str(file)]) == 2
    failed = capsys.readouterr()
    assert failed.out == ""
    assert failed.err.count("\n") == 1
    assert f"{file} is wrong: Object contains unknown field `single_fight` - at `$.policy`" in failed.err


def test_what_only_a_restart_changes_is_known(tmp_path: Path) -> None:
    old, new = load(tmp_path, ""), load(tmp_path, "[server]\nport = 1\nworkers = 2\ndrain_s = 1\n")
    assert needs_restart(old, new) == ["port", "workers"]


def test_what_did_not_change_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """New keys: the same engine. Another policy: a new engine with the old one's answers; that ends when it is done."""
    monkeypatch.setattr("paceline.gateway.lifecycle.reload._LOOK_S", 0.001)
    first, second = new_key("first")[1], new_key("second")[1]
    caching = Policy(cache=CachePolicy(enabled=True))

    def config(url: str, *keys: Key, policy: Policy = caching) -> GatewayConfig:
        return GatewayConfig(providers={"openai": ProviderSettings(url=url)}, policy=policy, keys=list(keys))

    async def main() -> None:
        gate = asyncio.Event()
        script: list[Step] = [STREAM_HEAD, chunk(EVENTS[0]), gate, *map(chunk, EVENTS[1:]), STREAM_END]
        async with scripted(*script) as upstream:
            composition = Composition(lambda _: None, Pages(), Table(1), 0, clock=RunClock())
            rows = {first.id: 0, second.id: 1}
            gateway = composition.apply(config(upstream.url), rows)
            old = gateway.engine
            assert gateway.door is None
            assert composition.apply(config(upstream.url, first), rows).engine is old
            assert gateway.door is not None
            request = HttpRequest("POST", CHAT, [], b'{"model": "m", "stream": true}')
            reply = old.handle(request)
            assert not isinstance(reply, Reply)
            stream = (await reply).body
            assert not isinstance(stream, (bytes, list))
            pieces = [await anext(stream)]
            composition.apply(config(upstream.url, policy=msgspec.structs.replace(caching, single_flight=True)), {})
            assert gateway.engine is not old
            assert gateway.engine.cache is old.cache
            assert composition._retiring
            gate.set()
            pieces += [piece async for piece in stream]
            assert pieces == EVENTS
            await until(lambda: not composition._retiring)
            assert len(upstream.requests) == 1
            await composition.close()

    run(main())


def test_rotated_credentials_are_taken_up_and_no_stream_is_dropped(tmp_path: Path) -> None:
    """Files of a provider and of a deployment are read again with each reload; a stream goes on with what it has."""
    (tmp_path / "openai.key").write_text("sk-old\n")
    (tmp_path / "east.key").write_text("east-old\n")

    async def main() -> None:
        gate = asyncio.Event()
        stream: list[Step] = [STREAM_HEAD, chunk(EVENTS[0]), gate, *map(chunk, EVENTS[1:]), STREAM_END]
        async with scripted(scripts=[stream, PLAIN]) as upstream:
            deployment = f'name = "east"\nmodel = "m"\nurl = "{upstream.url}/v1"\nkey_file = "east.key"\n'
            text = (
                f'[providers.openai]\nurl = "{upstream.url}"\nkey_file = "openai.key"\n'
                f"[policy.cache]\nenabled = true\n[[policy.routing.deployments]]\n{deployment}"
            )
            composition = Composition(lambda _: None, Pages(), Table(1), 0, clock=RunClock())
            gateway = composition.apply(load(tmp_path, text), {})

            async def ask(body: bytes) -> Reply:
                reply = gateway.handle(HttpRequest("POST", CHAT, [], body))
                return reply if isinstance(reply, Reply) else await reply

            body = (await ask(b'{"model": "m", "stream": true}')).body
            assert not isinstance(body, (bytes, list))
            pieces = [await anext(body)]
            (tmp_path / "openai.key").write_text("sk-new\n")
            (tmp_path / "east.key").write_text("east-new\n")
            cache = gateway.engine.cache
            composition.apply(load(tmp_path, text), {})
            assert gateway.engine.cache is cache
            await ask(b'{"model": "m"}')
            await ask(b'{"model": "other"}')
            engine = gateway.engine
            assert composition.apply(load(tmp_path, text), {}).engine is engine  # nothing changed
            gate.set()
            pieces += [piece async for piece in body]
            assert pieces == EVENTS
            sent = [bytes(re.search(rb"authorization: (.*)\r\n", head)[1]) for head in upstream.requests]  # type: ignore[index]
            assert sent == [b"Bearer east-old", b"Bearer east-new", b"Bearer sk-new"]
            (tmp_path / "east.key").write_text("")
            with pytest.raises(
                ConfigError, match=r"deployment east takes its credential from the file .*east.key, which is empty"
            ):
                composition.apply(load(tmp_path, text), {})
            assert gateway.engine is engine
            await composition.close()

    run(main())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_new_configuration_takes_no_stream_away(tmp_path: Path, workers: int) -> None:
    """A stream goes on on the old one; new calls get the new policy and keys; a wrong file changes nothing."""
    config, keys = tmp_path / "gateway.toml", tmp_path / "keys.toml"
    alice, bob = (new_key(name) for name in ("alice", "bob"))
    add_key(keys, alice[1])

    def write(url: str, more: str) -> None:
        config.write_text(
            f'keys_file = "keys.toml"\n[server]\nworkers = {workers}\n[providers.openai]\nurl = "{url}"\n{more}'
        )

    async def main() -> None:
        gate = asyncio.Event()
        first: list[Step] = [STREAM_HEAD, chunk(EVENTS[0]), gate, *map(chunk, EVENTS[1:]), STREAM_END]
        async with scripted(scripts=[first, PLAIN]) as upstream:
            write(upstream.url, "[policy]\n")
            async with serving("--config", str(config)) as g:
                stream = await g.client.request("POST", CHAT, [bearer(alice[0])], b'{"model": "m", "stream": true}')
                assert await stream.__anext__() == EVENTS[0]
                assert (await g.ask(bearer(bob[0])))[0] == 401

                revoke_key(keys, "alice")
                add_key(keys, bob[1])
                write(upstream.url, "[policy.cache]\nenabled = true\n")
                g.process.send_signal(signal.SIGHUP)
                assert await g.line() == f"paceline: new configuration in force ({config})\n"
                async with asyncio.timeout(PATIENCE_S):  # workers follow the parent's word
                    while (await g.ask(bearer(alice[0])))[0] != 401 or (await g.ask(bearer(bob[0])))[0] != 200:
                        pass
                sent = len(upstream.requests)
                for _ in range(3):
                    assert (await g.ask(bearer(bob[0])))[0] == 200
                assert len(upstream.requests) == sent  # the same connection, so the same worker's cache

                deployment = 'name = "d"\nmodel = "m"\nurl = "http://127.0.0.1:1"\nkey_env = "PACELINE_NOT_SET"\n'
                for text, words in (  # one that no file may hold, and one that only an engine finds out
                    ("[server]\nport = false\n", f"the configuration {config} is wrong: Expected `int`, got `bool`"),
                    (f"[[policy.routing.deployments]]\n{deployment}", "PACELINE_NOT_SET"),
                ):
                    config.write_text(text)
                    g.process.send_signal(signal.SIGHUP)
                    said = await g.line()
                    assert said.startswith("paceline: the old configuration stays in force: ")
                    assert words in said
                    assert (await g.ask(bearer(bob[0])))[0] == 200

                gate.set()
                assert await stream.read() == b"".join(EVENTS[1:])
                assert await g.stop(signal.SIGTERM) == (0, "")

    run(main())


@pytest.mark.slow
def test_a_worker_that_dies_comes_back_with_the_newest_configuration(tmp_path: Path) -> None:
    """Not with the one its parent was started with."""
    config = tmp_path / "gateway.toml"

    async def main() -> None:
        async with scripted(*PLAIN) as old, scripted(*PLAIN) as new:
            config.write_text(f'[server]\nworkers = 2\n[providers.openai]\nurl = "{old.url}"\n')
            async with serving("--config", str(config)) as g:
                config.write_text(f'[server]\nworkers = 3\n[providers.openai]\nurl = "{new.url}"\n')
                g.process.send_signal(signal.SIGHUP)
                assert await g.line() == f"paceline: new configuration in force ({config}); workers after a restart\n"
                for worker in g.workers():
                    worker.kill()
                assert {(await g.line()).partition("(")[0] for _ in range(2)} == {
                    "paceline: worker 0 ",
                    "paceline: worker 1 ",
                }
                await eventually(lambda: len(g.workers()) == 2)
                assert (await g.ask())[0] == 200
                assert (len(old.requests), len(new.requests)) == (0, 1)

    run(main())
