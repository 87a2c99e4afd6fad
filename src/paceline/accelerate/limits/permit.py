"""Leave to send one call, and what may be told through it."""

from typing import Protocol

from paceline.accelerate.limits.signals import Signal


class Passed(Protocol):
    """The gate a permit is for."""

    admitted: int
    admitted_tokens: int
    in_flight: int
    tokens_in_flight: int

    def heard(self, permit: "Permit", signal: Signal) -> None:
        """Learn from an answer."""
        ...

    def correct(self, more_tokens: int, *, is_in: bool) -> None:
        """A call turned out larger or, negative, smaller than it was estimated; `is_in`: it has not left."""
        ...

    def leave(self, permit: "Permit") -> None:
        """A call is over."""
        ...


class Permit:
    """Leave to send one call. `leave` when it is over; everything else is to tell what happened."""

    __slots__ = (
        "_gate",
        "_heard",
        "_is_out",
        "admitted_s",
        "before",
        "before_tokens",
        "serial",
        "serial_tokens",
        "tokens",
        "waited",
    )

    def __init__(self, gate: Passed, tokens: int, admitted_s: float, waited: bool) -> None:
        self._gate = gate
        self._heard = False
        self._is_out = False
        self.admitted_s = admitted_s
        self.serial = gate.admitted  # calls and tokens admitted up to this one
        self.serial_tokens = gate.admitted_tokens
        self.before = gate.in_flight  # when it came
        self.before_tokens = gate.tokens_in_flight
        self.tokens = tokens
        self.waited = waited  # True: not admitted at once

    def heard(self, signal: Signal) -> None:
        """The provider answered: what it said about its limits. Once; more are ignored."""
        if not self._heard:
            self._heard = True
            self._gate.heard(self, signal)

    def used(self, tokens: int) -> None:
        """The real number of tokens, in place of the estimate; also after `leave`."""
        more = tokens - self.tokens
        if more:
            self.tokens = tokens
            self._gate.correct(more, is_in=not self._is_out)

    def leave(self) -> None:
        """The call is over (a stream: closed). Again: nothing."""
        if not self._is_out:
            self._is_out = True
            self._gate.leave(self)
