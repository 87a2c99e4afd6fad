"""`paceline sim` as a process."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S

from paceline.testing import SimulatedProvider

COMMAND = [sys.executable, "-m", "paceline", "sim"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_announces_itself_serves_and_ends_when_told(number: int, code: int) -> None:
    command = [*COMMAND, "--port", "0", "--json", "--speed", "50"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["url"] == f"http://127.0.0.1:{said['port']}"
        with urllib.request.urlopen(f"{said['url']}/v1/models") as reply:
            assert reply.headers["x-paceline-speed"] == "50"
        process.send_signal(number)
        out, log = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (code, "")
    assert log.splitlines()[0].startswith("models at 50 times real pace, seed 0: gpt-4, ")
    assert log.splitlines()[1] == "paceline: stopped; 0 answered, 0 refused"


@pytest.mark.slow
def test_limits_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "provider.toml"
    path.write_text('[models."gpt-4o"]\nrequests_per_min = 600\ntokens_per_min = 450_000\n')
    command = [*COMMAND, "--port", "0", "--config", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "(for SDKs: http://127.0.0.1:" in process.stdout.readline()
        process.terminate()
        _, log = process.communicate(timeout=PATIENCE_S)
    assert "gpt-4o (600 requests/min, 450,000 tokens/min)" in log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "{taken}"], "cannot listen on 127.0.0.1:"),
        (["--speed", "0"], "--speed must be above 0; got 0"),
        (["--config", "missing.toml"], "cannot read missing.toml"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_exit_2(arguments: list[str], said: str) -> None:
    with SimulatedProvider() as provider:
        given = [argument.format(taken=provider.port) for argument in arguments]
        ended = subprocess.run([*COMMAND, *given], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    assert said in ended.stderr
