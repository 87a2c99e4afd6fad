"""Callers: which of the application's own functions a call belongs to.

A recorded call carries a chain of frames, innermost first, each "path:line function". The step is the innermost
function that is not a shared wrapper. A function is a shared wrapper once ONE trace has shown it being called by two
different functions on the way to such a call: `call_model()` reached from `classify()` and from `answer()` is one;
`classify()` reached from two endpoints is not, because no single request comes through both. Wrappers already known
are looked through, so `call_model()` behind a `retry()` decorator is found as well.

The recorder applies the rule as calls happen, so the very first calls may carry the wrapper's name; `steps` applies it
again over the whole run. Assumption: a step is not itself called from two places within a request.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

MAX_CALLERS = 4
_MAX_CHAINS = 10_000
_MAX_ROUNDS = 4  # wrappers around wrappers; each round looks through one more


def function_of(frame: str) -> str:
    """The frame without its line: "path function", the identity of a function."""
    site, _, name = frame.rpartition(" ")
    return f"{site.rpartition(':')[0]} {name}"


def step_frame(callers: Sequence[str], wrappers: "frozenset[str] | set[str]") -> str | None:
    """The innermost frame that is not a wrapper; the outermost when all are; None without frames."""
    for frame in callers:
        if function_of(frame) not in wrappers:
            return frame
    return callers[-1] if callers else None


class WrapperRule:
    """Learns wrappers call by call. `edges` is the memory of one trace and is kept by the caller."""

    __slots__ = ("_functions", "_steps", "wrappers")

    def __init__(self) -> None:
        self.wrappers: set[str] = set()
        # Of chains seen before, as most calls repeat one; emptied when a wrapper is found.
        self._functions: dict[tuple[str, ...], list[str]] = {}
        self._steps: dict[tuple[str, ...], str | None] = {}

    def learn(self, callers: Sequence[str], edges: dict[str, str]) -> None:
        """Take in one chain of a trace."""
        for function, outer in pairwise(self._own_functions(tuple(callers))):
            seen = edges.setdefault(function, outer)
            if seen in self.wrappers:
                edges[function] = outer
            elif seen != outer:
                self.wrappers.add(function)
                self._functions.clear()
                self._steps.clear()

    def step_frame(self, callers: tuple[str, ...]) -> str | None:
        """`step_frame` with the wrappers known now."""
        if callers not in self._steps:
            if len(self._steps) >= _MAX_CHAINS:
                self._steps.clear()
            self._steps[callers] = step_frame(callers, self.wrappers)
        return self._steps[callers]

    def _own_functions(self, callers: tuple[str, ...]) -> list[str]:
        """The chain's functions, wrappers left out and recursion counted once."""
        known = self._functions.get(callers)
        if known is None:
            functions = [f for frame in callers if (f := function_of(frame)) not in self.wrappers]
            known = [f for at, f in enumerate(functions) if at == 0 or f != functions[at - 1]]
            if len(self._functions) >= _MAX_CHAINS:
                self._functions.clear()
            self._functions[callers] = known
        return known


def wrappers_in(chains: Iterable[tuple[str, Sequence[str]]]) -> frozenset[str]:
    """The shared wrappers that (trace id, callers) pairs reveal, whatever their order within a trace."""
    pairs = list(chains)
    rule = WrapperRule()
    for _ in range(_MAX_ROUNDS):
        edges: dict[str, dict[str, str]] = {}
        known = len(rule.wrappers)
        for trace_id, callers in pairs:
            rule.learn(callers, edges.setdefault(trace_id, {}))
        if len(rule.wrappers) == known:
            break
    return frozenset(rule.wrappers)
