"""docs/tutorial.md runs as it stands: its application is notes.py, and its commands work one after the other."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paceline.record.launcher import free_port

HERE = Path(__file__).parent
REQUESTS = 32  # a projection takes 30
TIMEOUT_S = 600  # it takes half a minute of CPU time, most of it the start of fifteen processes
PAGE = (HERE.parents[1] / "docs" / "tutorial.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_application_shown_is_the_one_that_runs() -> None:
    """The page holds notes.py to the letter."""
    assert blocks("python") == [(HERE / "notes.py").read_text()]


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 60)
def test_the_commands_run_in_order(tmp_path: Path) -> None:
    """Record, load, diagnose, report, init, tune twice; hurried, and with fewer requests, as the page is not."""
    for name in ("notes.py", "requests.jsonl"):
        shutil.copy(HERE / name, tmp_path)
    script = "\n".join(blocks("bash"))
    for port, free in (("8000", free_port()), ("8900", free_port())):
        script = script.replace(port, str(free))
    script = script.replace("--requests 60", f"--requests {REQUESTS}")
    script = script.replace("--speed 10", "--speed 20").replace("sim --port", "sim --speed 20 --port")
    # So hurried on a busy machine the objective may be missed, which is no matter of the page.
    script = re.sub(r"^(paceline tune --speed 20)$", r"\1 || test $? = 1", script, flags=re.MULTILINE)
    bin_folder = Path(sys.executable).parent
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={"PATH": f"{bin_folder}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        out, errors = process.communicate(timeout=TIMEOUT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what a command that failed left in the background
    assert process.returncode == 0, out + errors
    assert "Traceback" not in errors
    assert "run one after the other although" in out  # what the page says is wrong is what is found
    [run] = (tmp_path / ".paceline" / "runs").iterdir()
    assert (run / "report.html").exists()
    tunes = sorted((tmp_path / ".paceline" / "tunes").iterdir())
    assert len(tunes) == 2
    assert [(t / "projections.json").exists() for t in tunes] == [False, True]
    assert "small-model" in out
