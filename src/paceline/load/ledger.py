"""Ledger: what became of each request, on its way to the disk and into the figures of this process."""

import math
import os
import time

from paceline.load.answer import Answer
from paceline.load.attempt import Attempt, Encoder
from paceline.load.line import CHECK, Line
from paceline.load.tally import Tally
from paceline.model.request import Request
from paceline.stats.histogram import Histogram
from paceline.store.folder import RunFolder
from paceline.store.rows import CACHES, ERRORS, ROW, RowsHeader, decode_rows

_pack = ROW.pack


class Ledger:
    """A row of 56 bytes a request; streams, and whatever else does not fit one, as a line beside.

    Whoever creates it closes it. `append(ROW.pack(...))` is the short way's.
    """

    def __init__(self, run: RunFolder, scenario: str, zero_s: float, encoder: Encoder) -> None:
        writer = f"load-{os.getpid()}-{time.time_ns():x}"
        high, base = encoder.trace_high, f"{encoder.trace_base:016x}"
        header = RowsHeader(scenario=scenario, zero_s=zero_s, trace_high=high, trace_base=base)
        self._rows = run.row_spool(writer, header)
        self._full = run.spool("requests", f"{writer}-full")
        self._scenario, self._zero_s, self._encoder = scenario, zero_s, encoder
        self._unread: list[bytes] = []  # rows written, not in `latencies` yet
        self.append = self._rows.append
        self.latencies = Histogram()
        self.tally = Tally()  # for snapshots
        encoder.record_in(self._rows)

    def add(self, line: Line, failed_check: str | None) -> None:
        """The line's request has ended."""
        answer = line.answer
        if answer is not None and (answer.wants_full_record or line.error == CHECK):
            self._add_fully(line, answer, failed_check)
            return
        self.append(
            _pack(
                line.intended_s,
                line.started_s,
                line.first_byte_s,
                line.ended_s,
                line.response_bytes,
                line.index,
                line.encoded.naming,
                line.user,
                line.status,
                line.error,
                line.cache,
            )
        )

    def add_unsent(self, attempt: Attempt, ended_s: float, error: int) -> None:
        """It ended before it was sent."""
        started_s, naming = attempt.started_s or ended_s, attempt.encoded.naming
        times_s = (attempt.intended_s, started_s, math.nan, ended_s)
        self.append(_pack(*times_s, 0, attempt.number, naming, attempt.user, 0, error, 0))

    def flush(self) -> None:
        """Write what has ended. Raises OSError: the disk refused."""
        data = self._rows.flush()
        if data:
            self._unread.append(data)
        self._full.flush()

    def read(self) -> float | None:
        """Take what was written into account: seldom, since numpy costs as much for 50 as for 500.

        The mean seconds from the real start of a request to its end; None: nothing new.
        """
        if not self._unread:
            return None
        rows = decode_rows(b"".join(self._unread))
        self._unread.clear()
        self.latencies.record_all(rows["ended_s"] - rows["intended_s"])
        self.tally.add_rows(rows)
        return float((rows["ended_s"] - rows["started_s"]).mean())

    def close(self) -> None:
        """Write and close. Raises OSError like `flush`, after closing."""
        try:
            self.flush()
            self.read()
        finally:
            self._rows.close()
            self._full.close()
            if not self._full.written:
                self._full.path.unlink(missing_ok=True)

    def _add_fully(self, line: Line, answer: Answer, failed_check: str | None) -> None:
        body, zero_s = line.encoded.body, self._zero_s
        request = Request(
            index=line.index,
            scenario=self._scenario,
            endpoint=body.endpoint,
            trace_id=self._encoder.trace_id(line.index),
            intended_s=line.intended_s - zero_s,
            started_s=line.started_s - zero_s,
            first_byte_s=None if math.isnan(line.first_byte_s) else line.first_byte_s - zero_s,
            ended_s=line.ended_s - zero_s,
            status=line.status or None,
            error=ERRORS[line.error],
            request_bytes=len(body.data),
            response_bytes=line.response_bytes,
            cache=CACHES[line.cache],
            key=body.key,
            text_key=body.text_key,
            user=None if line.user < 0 else line.user,
            failed_check=failed_check if line.error == CHECK else None,
            gaps_s=answer.gaps_s,
            first_token_s=None if answer.first_token_s is None else answer.first_token_s - zero_s,
            output_tokens=answer.output_tokens,
            cost_usd=answer.cost_usd,
        )
        self._full.append(request)
        self.tally.add(request)
        self.latencies.record(line.ended_s - line.intended_s)
