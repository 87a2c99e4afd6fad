"""`paceline cache`, and warming: what the verbs do to shared levels, and what they say when they cannot."""

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.accelerate.redis_server import running
from tests.accelerate.test_accelerate_cache_host import ask, policy
from tests.accelerate.test_accelerate_cache_library import Clock

from paceline.accelerate.cache import Cache, CachePolicy, HostPolicy, MemoryPolicy, StoredReply, export, warm
from paceline.cli import cache as verb
from paceline.errors import ConfigError, InputError

pytest.importorskip("lmdb")


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args(arguments))


def fill(folder: Path) -> None:
    async def main() -> None:
        async with Cache(policy(folder)) as cache:
            await ask(cache, "a", "A", tags=["x"])
            await ask(cache, "b", "B", tenant="acme")
            await ask(cache, ("c", 1), "C")

    asyncio.run(main())


def held(folder: Path) -> list[bool]:
    async def main() -> list[bool]:
        async with Cache(policy(folder)) as cache:
            asked: list[tuple[Any, str | None]] = [("a", None), ("b", "acme"), (("c", 1), None)]
            return [not (await ask(cache, key, tenant=tenant))[1] for key, tenant in asked]

    return asyncio.run(main())


def test_sizes_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    assert run("stats", "--host", str(tmp_path), "--json") == 0
    (level,) = json.loads(capsys.readouterr().out)["levels"]
    assert (level["name"], level["state"], level["entries"]) == ("host", "up", 3)
    assert run("stats", "--host", str(tmp_path)) == 0
    assert "3 entries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["invalidate", "--tag", "x"], [False, True, True]),
        (["invalidate", "--key", "a"], [False, True, True]),
        (["invalidate", "--key", "b", "--tenant", "acme"], [True, False, True]),
        (["invalidate", "--tenant", "acme"], [True, False, True]),
        (["clear"], [False, False, False]),
    ],
    ids=["tag", "key", "key of tenant", "tenant", "all"],
)
def test_answers_are_dropped(
    arguments: list[str], left: list[bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path)
    assert run(*arguments, "--host", str(tmp_path)) == 0
    assert capsys.readouterr().out == f"{left.count(False)} answers dropped\n"
    assert held(tmp_path) == left


def test_a_policy_file_and_redis_are_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "policy.toml").write_text(
        f'single_flight = true\n[cache]\nenabled = true\n[cache.host]\nenabled = true\npath = "{tmp_path}/store"\n'
    )
    fill(tmp_path / "store")
    with running() as server:
        source = tmp_path / "warm.jsonl"
        source.write_text('{"key": "a", "value": "warm"}\n\n{"key": ["c", 1], "value": 2, "tenant": "t"}\n')
        options = ("--policy", str(tmp_path / "policy.toml"), "--redis", server.url, "--json")
        assert run("warm", str(source), *options) == 0
        done = json.loads(capsys.readouterr().out)
        assert [(row["name"], row["entries"]) for row in done["levels"]] == [("host", 4), ("fleet", 2)]
        assert (done["stored"], done["too_old"]) == (2, 0)
        assert run("clear", *options) == 0
        assert json.loads(capsys.readouterr().out)["dropped"] == 4
    assert run("stats", *options) == 1  # Redis is gone
    assert "not reached: fleet" in capsys.readouterr().err


def test_an_export_warms_another_cache_with_the_ages_it_had(tmp_path: Path) -> None:
    """Replies and values, their tags too; what has become too old meanwhile is left out."""
    clock = Clock()
    reply = StoredReply(headers=[(b"a", b"\xff")], pieces=[b"\x00", b"2"], stream=True, cost_usd=0.5, model="m")

    def settings(folder: str) -> CachePolicy:
        host = HostPolicy(enabled=True, path=str(tmp_path / folder), max_bytes=4_000_000)
        return CachePolicy(memory=MemoryPolicy(max_bytes=100_000), host=host)

    async def main() -> None:
        async with Cache(settings("one"), now_s=clock) as cache:
            await ask(cache, "reply", reply, tags=["x"])
            await ask(cache, "short", [1, None], ttl_s=10.0)
            await ask(cache, "long", {"a": b"x"}, ttl_s=100.0)
            await cache.flush()
            assert export(cache, tmp_path / "copy.jsonl") == 3
        clock.now_s += 50.0
        async with Cache(settings("two"), now_s=clock) as cache:
            warmed = await warm(cache, tmp_path / "copy.jsonl")
            assert (warmed.stored, warmed.too_old) == (2, 1)
            assert await ask(cache, "reply") == (reply, False)
            assert await ask(cache, "long") == ({"a": b"x"}, False)
            assert await cache.invalidate(tags=["x"]) == 1
            clock.now_s += 50.0
            assert (await ask(cache, "long"))[1] is True
        assert (tmp_path / "copy.jsonl").stat().st_mode & 0o077 == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1"),
        ('{"key": "a", "value": 1}\n{"value": 2}', "line 2 .* neither key nor storage_key"),
        ('{"key": "a", "vlaue": 1}', "unknown field"),
        ('{"storage_key": "zz"}', "line 1"),
        ('{"storage_key": "abcd"}', "64 hexadecimal digits"),
        ('{"key": "a", "ttl_s": -1}', "must not be negative"),
    ],
)
def test_a_wrong_line_is_named(text: str, said: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with Cache() as cache:
            source = tmp_path / "wrong.jsonl"
            source.write_text(text)
            with pytest.raises(InputError, match=said):
                await warm(cache, source)

    asyncio.run(main())


def test_a_run_without_answers_and_a_missing_file_are_said(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cache() as cache:
            with pytest.raises(InputError, match="holds no recorded answers"):
                await warm(cache, tmp_path)
            with pytest.raises(InputError, match="cannot read"):
                await warm(cache, tmp_path / "none.jsonl")
            (tmp_path / "cache.jsonl").write_text('{"key": "a", "value": 1}')
            assert (await warm(cache, tmp_path)).stored == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["clear"], "which cache"),
        (["clear", "--host", "/nowhere/cache"], "there is no cache in /nowhere/cache"),
        (["invalidate", "--redis", "redis://127.0.0.1:1/0"], "invalidate what"),
        (["stats", "--redis", "http://x"], "must begin with redis://"),
        (["stats", "--policy", "/nowhere/policy.toml"], "cannot read the policy"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(*arguments)
