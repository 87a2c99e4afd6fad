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

MAX_CALLERS = 4
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

    __slots__ = ("wrappers",)

    def __init__(self) -> None:
        self.wrappers: set[str] = set()

    def learn(self, callers: Sequence[str], edges: dict[str, str]) -> None:
        """Take in one chain of a trace."""
        functions = [function_of(frame) for frame in callers]
        for at, function in enumerate(functions):
            if function in self.wrappers:
                continue
            outer = next((f for f in functions[at + 1 :] if f not in self.wrappers and f != function), None)
            if outer is None:
                continue
            seen = edges.setdefault(function, outer)
            if seen in self.wrappers:
                edges[function] = outer
            elif seen != outer:
                self.wrappers.add(function)


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
