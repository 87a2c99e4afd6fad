"""The offset between two machines' monotonic clocks, from messages there and back."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Offset:
    """What to add to the other machine's clock to read ours, and how far that may be off at most, in seconds."""

    ahead_s: float
    within_s: float


def offset_of(exchanges: Iterable[tuple[float, float, float]]) -> Offset:
    """The best of several exchanges (sent on our clock, answered on theirs, received on ours); at least one.

    The answer was given somewhere between sending and receiving, so the middle is off by half the round trip at most,
    whatever the network does; the shortest one says most. Source: Cristian, Probabilistic clock synchronization, 1989.
    """
    sent_s, theirs_s, received_s = min(exchanges, key=lambda exchange: exchange[2] - exchange[0])
    return Offset((sent_s + received_s) / 2 - theirs_s, (received_s - sent_s) / 2)
