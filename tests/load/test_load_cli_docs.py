"""What docs/load.md shows is what works: its commands are understood, its files are read, its presets are all."""

import re
import shlex
from pathlib import Path

import pytest

from paceline.cli import _parser, load_options
from paceline.load.named import PRESETS
from paceline.load.scenario_file import read_scenarios

PAGE = (Path(__file__).parents[2] / "docs" / "load.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line.strip()
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line: str, tmp_path: Path) -> None:
    """Files it names are looked for, and nothing else is wrong with it."""
    words = shlex.split(line)
    assert words[:2] == ["paceline", "load"]
    args = _parser("load").parse_args(words[1:])
    load_options.check(args)
    if args.target is None or args.file is not None:
        return
    for name in ("bodies", "replay"):
        if getattr(args, name) is not None:
            setattr(args, name, tmp_path / "given")
    (tmp_path / "given").write_text('{"q": 1}\n')
    base, scenarios = load_options.scenarios_of(args)
    assert base.startswith("http://127.0.0.1:")
    assert scenarios
    if args.find_knee is not None:
        assert load_options.knee_search(args).start_per_s == args.find_knee


def test_the_scenario_file_is_read(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "s.toml").write_text(text)
    mixed, sessions = read_scenarios(tmp_path / "s.toml")
    assert (mixed.users, mixed.duration_s, len(mixed.mix)) == (20, 70, 2)
    assert [turn.path for turn in sessions.turns] == ["/sessions", "/sessions/{{session}}/messages"]


def test_all_presets_and_ways_of_saying_how_much_are_there() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(PRESETS)
    for kind in load_options._KINDS:
        assert f"| `{kind} " in PAGE
