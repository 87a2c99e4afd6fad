"""The short way: from a known answer to the next request, for all that one wake of the epoll brings.

What Line, Turns, Deck and Ledger do for any request, spelled out for the commonest one: an answer in one piece with a
known head and no error, after which the user sends the next of a fixed sequence at once, or the line waits for an
arrival. The calls between them would cost more than all that is left here (docs/decisions/0008-load-hot-path.md).
Anything else goes to the Line. Both ways record the same: tests/load/test_load_short_way.py compares them.
"""

import math
import time
from collections.abc import Callable
from typing import cast

from paceline.load.line import READ_BYTES, Line
from paceline.load.readiness import READABLE, Events
from paceline.load.turns import Turns
from paceline.store.rows import ROW

_LEAST_BYTES = 4096  # to read at once; Python allocates what is asked for before it reads


def short_way(turns: Turns) -> Callable[[Events, float], None]:  # noqa: C901 - a call costs 0.1 to 0.2 us
    """Takes the events of a wake and when it was. To be made when `turns` has its ledger and its deck."""
    lines = cast("dict[int, Line]", turns.readiness.watched)
    idle, deck, is_closed = turns.pool.idle, turns.deck, turns.is_closed
    append, known = turns.ledger.append, turns.heads.known
    pack, join, monotonic, nan = ROW.pack, b"".join, time.monotonic, math.nan
    read_bytes = READ_BYTES
    prefix, whole_bytes, body_bytes, status, cache = b"\0", 0, 0, 0, 0  # of the head met last

    def is_known(data: bytes) -> bool:
        """Look among all heads, and expect the same one next."""
        nonlocal read_bytes, prefix, whole_bytes, body_bytes, status, cache
        head = known.get(data[: data.find(b"\r\n\r\n")])
        if head is None or len(data) != head.whole_bytes or head.status >= 400:
            return False
        prefix, whole_bytes, body_bytes = head.prefix, head.whole_bytes, head.body_bytes
        status, cache = head.status, head.cache
        read_bytes = min(max(2 * whole_bytes, _LEAST_BYTES), READ_BYTES)
        return True

    def take(events: Events, now_s: float) -> None:  # noqa: C901
        nonlocal read_bytes
        dealt, quick = deck.dealt, turns.is_quick(now_s)
        done = sent = 0
        for descriptor, event in events:
            line = lines.get(descriptor)
            if line is None:  # an earlier event of this wake closed it
                continue
            data: bytes | None = None
            if quick and line.quick and event == READABLE:
                try:
                    data = line.recv(read_bytes)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""  # lost, which the line takes as it takes the end
                if (data.startswith(prefix) and len(data) == whole_bytes) or is_known(data):
                    append(
                        pack(
                            line.intended_s,
                            line.started_s,
                            now_s if body_bytes else nan,
                            now_s,
                            body_bytes,
                            line.index,
                            line.encoded.naming,
                            line.user,
                            status,
                            0,
                            cache,
                        )
                    )
                    done += 1
                    if not is_closed:
                        line.busy = line.quick = False
                        idle.append(line)
                        continue
                    card = next(dealt, None)
                    if card is not None:
                        line.index, encoded, mark = card
                        line.encoded, line.mark, line.intended_s = encoded, mark, now_s
                        line.quick, line.reused = encoded.is_short, True
                        data = join((encoded.before, mark, encoded.after))
                        sent += 1
                        line.started_s = monotonic()
                        try:
                            size = line.send(data)
                        except OSError:
                            size = 0  # no room, or lost: then there will be an event that says so
                        if size != len(data):
                            line.keep_rest(data, size)
                        continue
                    line.busy = line.quick = False
            turns.sent += sent
            turns.done += done
            done = sent = 0
            if data is None:
                line.ready(event, now_s)
            elif line.busy:
                line.received(data, now_s)
                if len(data) == read_bytes:
                    read_bytes = READ_BYTES
                    line.ready(event, now_s)
            else:  # answered, and the deck is to be dealt anew
                turns.turn(line.user, now_s, line)
            dealt, quick = deck.dealt, turns.is_quick(now_s)
        turns.sent += sent
        turns.done += done
        if done and turns.sent == turns.done:
            turns.end_if_over()

    return take
