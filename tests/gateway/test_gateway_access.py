"""The access log: a line a call, without secrets; never in the way of a call."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.builders import COST_USD, PLAIN, SHARING
from tests.gateway.keyed import bearer, keyed, make
from tests.gateway.metrics.test_gateway_metrics import call
from tests.wire.builders import run

from paceline.errors import ConfigError
from paceline.gateway import access_log
from paceline.gateway.access_log import AccessLog


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_everything_but_words_and_secrets(tmp_path: Path) -> None:
    """Hit, miss and refusal; no prompt, no answer, no key, no credential."""
    path = tmp_path / "access.log"
    presented, key = make("alice", tenant="acme")

    async def main() -> None:
        log = AccessLog(str(path))
        log.start()
        async with keyed([key], *PLAIN, policy=SHARING, log=log) as g:
            for _ in range(2):
                await g.ask(presented, "the secret question")
            await g.ask("pl_00000000_wrong")
            target = f"/v1beta/models/m:generateContent?key={presented}"
            await g.send("POST", target, (b"x-paceline-step", b"answer"), body=b"{}")
            await g.send("GET", "/v1/files?after=x", bearer(presented))
        log.close()

    run(main())
    said = lines(path)
    assert [line["status"] for line in said] == [200, 200, 401, 200, 403]
    miss, hit, refused, gemini, files = said
    assert (miss["key"], miss["tenant"], miss["model"], miss["outcome"]) == ("alice", "acme", "gpt-4o-mini", "miss")
    assert (miss["input_tokens"], miss["output_tokens"]) == (1000, 500)
    assert miss["cost_usd"] == pytest.approx(COST_USD)
    assert miss["ms"] > 0
    assert (hit["outcome"], hit["cost_usd"]) == ("hit", 0.0)
    assert hit["saved_usd"] == pytest.approx(COST_USD)
    assert (refused["outcome"], refused["error"]) == ("refused", "invalid_api_key")
    assert (gemini["path"], gemini["step"]) == ("/v1beta/models/m:generateContent", "answer")
    assert (files["path"], files["error"]) == ("/v1/files", "forbidden")
    text = path.read_text()
    assert not any(word in text for word in ("secret", "Hello", presented, key.hash))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """However many lines are lost; they are counted."""
    lost = []
    log = AccessLog("/dev/full", dropped=lambda: lost.append(1))
    for _ in range(50):
        log.take(call())
    log.start()
    log.close()
    assert len(lost) == 50
    said = capsys.readouterr().err
    assert said == "paceline: the access log cannot be written (No space left on device); serving goes on\n"


def test_a_reader_who_does_not_read_loses_lines_and_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer is bounded, and closing does not wait for ever."""
    monkeypatch.setattr(access_log, "MAX_LINES", 100)
    monkeypatch.setattr(access_log, "_CLOSE_S", 0.01)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, b"x" * 4096):
            pass
    lost = []
    log = AccessLog(f"/dev/fd/{writing}", dropped=lambda: lost.append(1))
    log.start()
    for _ in range(1_000):
        log.take(call())
    assert len(lost) >= 800
    log.close()
    assert log._thread.is_alive()
    assert log._thread.daemon
    os.close(writing)
    while os.read(reading, 65_536):  # until the thread has written what it had, and let go
        pass
    os.close(reading)
    log._thread.join()


def test_a_file_moved_away_is_let_go(tmp_path: Path) -> None:
    """Rotation: after `reopen` new lines go to a new file."""
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    log.take(call())
    log._write_waiting()
    path.rename(tmp_path / "access.log.1")
    log.reopen()
    log.take(call())
    log.take(call())
    log._write_waiting()
    assert (len(lines(tmp_path / "access.log.1")), len(lines(path))) == (1, 2)


def test_a_file_that_cannot_be_opened_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write the access log"):
        AccessLog(str(tmp_path / "nowhere" / "access.log"))


def test_standard_output_is_a_dash(capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog("-")
    log.take(call("model-x"))
    log._write_waiting()
    sys.stdout.flush()
    assert json.loads(capfd.readouterr().out)["model"] == "model-x"
