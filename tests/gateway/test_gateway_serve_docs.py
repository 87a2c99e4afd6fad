"""What docs/gateway.md shows is what the gateway takes."""

import re
import shlex
from pathlib import Path

import msgspec
import pytest

from paceline.cli import _parser
from paceline.gateway.config import ServerSettings, Sources
from paceline.gateway.keys.file import Key, add_key, new_key

PAGE = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [text for its_kind, text in found if its_kind == kind]


def test_the_configuration_it_shows_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = blocks("toml")
    for name in re.findall(r'key_env = "(\w+)"', text):
        monkeypatch.setenv(name, "sk-x")
    (tmp_path / "gateway.toml").write_text(text)
    add_key(tmp_path / "keys.toml", new_key("alice")[1])
    config = Sources(config=str(tmp_path / "gateway.toml")).load()
    assert (config.server.workers, config.server.unready_s, config.policy.single_flight) == (4, 5.0, True)


def test_the_commands_it_shows_are_understood() -> None:
    """Words and options, as argparse takes them."""
    shown = [line for block in blocks("") for line in block.splitlines() if line.startswith("paceline ")]
    commands = [shlex.split(line, comments=True)[1:] for line in shown if not line.startswith("paceline:")]
    assert len(commands) >= 8
    for command in commands:
        _parser(command[0]).parse_args(command)


def test_it_names_every_setting_and_every_right_of_a_key() -> None:
    settings = {field.name: field.default for field in msgspec.structs.fields(ServerSettings)}
    for name in settings:
        assert f"`{name}`" in PAGE, name
    for name in set(Key.__struct_fields__) - {"name", "id", "salt", "hash", "created", "role"}:
        assert f"`{name}`" in PAGE, name
