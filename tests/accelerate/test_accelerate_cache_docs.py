"""docs/caching.md: its programs run, its settings are a policy, and its figures are the defaults."""

import re
from pathlib import Path

import msgspec
import pytest
from tests.accelerate.redis_server import running

from paceline.accelerate.cache import CachePolicy

PAGE = (Path(__file__).parents[2] / "docs" / "caching.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_every_program_runs(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    program = PROGRAMS[number]
    if "FleetPolicy" in program:
        pytest.importorskip("lmdb")
        with running() as server:
            exec(program.replace("redis://127.0.0.1:6379/0", server.url), {})  # noqa: S102 - that is the test
    else:
        exec(program, {})  # noqa: S102
    assert capsys.readouterr().out


def test_what_the_programs_print_is_what_they_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = []
    for program in PROGRAMS:
        if "FleetPolicy" not in program:
            exec(program, {})  # noqa: S102
            printed.append(capsys.readouterr().out)
    assert printed == [
        "{'document': 'contract-4711', 'words': 42} 0.6666666666666666\n",
        "{'id': 7} {'id': 7}\n",
        "1\n1\n0\n0\n",
        "1\nhello\n1\n",
        "user:*:profile 0.5 2\n1 [(1, 0.5), (5, 0.5), (15, 0.5)]\n",
    ]


def test_the_settings_are_a_policy() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    policy = msgspec.convert(msgspec.toml.decode(text)["cache"], CachePolicy)
    assert policy.levels == ("memory", "host", "fleet")
    assert (policy.stale_s, policy.memory.max_bytes, policy.host.path) == (60.0, 200_000_000, "/var/cache/app")
