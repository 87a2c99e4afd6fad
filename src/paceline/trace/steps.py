"""Steps: which function of the application a call belongs to, seen over the whole run.

The recorder writes the innermost application frame as a span's code. Where every call passes through one shared
`call_model()` or `with_retries()`, that frame says nothing; the frames further out do, and only the whole run shows
which functions are shared.
"""

from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import msgspec

from paceline.model.span import CACHE, DB, EMBEDDING, HTTP_CLIENT, LLM, QUEUE, TOOL, Span

CALLERS = "paceline.callers"  # up to four application frames, innermost first, outward from `Span.code`

_CALL_KINDS = frozenset((LLM, EMBEDDING, DB, CACHE, TOOL, QUEUE, HTTP_CLIENT))
_PARENT_HOPS = 4  # from the gateway's span up to the SDK's

Chain = tuple[str, ...]  # frames "path:line function", innermost first


class _Frame(NamedTuple):
    function: tuple[str, str]  # path and name
    line: str
    name: str


class _Seen(NamedTuple):
    """One sort of call: the frames it came through, what it is, and its prompt template where known."""

    chain: Chain
    kind: str
    template: str | None


def resolve_steps(spans: Iterable[Span]) -> list[Span]:
    """The spans, each call's `code` replaced by its innermost application frame that is not a wrapper.

    A function is a wrapper when, within one request, calls pass through it from more than one calling function, or
    from more than one line with different prompt templates; or when, over the run, its callers use it with template
    sets that have nothing in common. A function that itself makes several different LLM calls in one request gets a
    step per line, "handle:88". Order is kept; spans without code are untouched.

    Wrong when a step that deserves its own name is called from two functions in one request: each caller becomes a
    step instead.
    """
    spans = list(spans)
    templates = _templates(spans)
    chains: dict[str, Chain] = {}
    traces: defaultdict[str, set[_Seen]] = defaultdict(set)
    counts: defaultdict[_Seen, int] = defaultdict(int)
    for span in spans:
        if span.code is None or span.kind not in _CALL_KINDS:
            continue
        chain = chains[span.span_id] = _chain(span)
        seen = _Seen(chain, span.kind, span.fingerprint or templates.get(span.span_id))
        if span.kind != HTTP_CLIENT:  # the SDK's span above it says more
            traces[span.trace_id].add(seen)
            counts[seen] += 1
    signatures = {frozenset(seen) for seen in traces.values()}
    wrappers = _wrappers(signatures, counts)
    chosen = {chain: _choose(chain, wrappers) for chain in set(chains.values())}
    split = _several_calls(signatures, chosen)
    code = {chain: _with_line(frame) if _frame(frame).function in split else frame for chain, frame in chosen.items()}
    return [_recoded(s, code[chains[s.span_id]]) if s.span_id in chains else s for s in spans]


def _recoded(span: Span, code: str) -> Span:
    return span if code == span.code else msgspec.structs.replace(span, code=code)


def _chain(span: Span) -> Chain:
    callers = span.attributes.get(CALLERS)
    frames = tuple(callers) if isinstance(callers, list) else ()
    own = (span.code,) if span.code and span.code not in frames[:1] else ()
    return own + frames


@lru_cache(maxsize=65_536)
def _frame(code: str) -> _Frame:
    place, _, name = code.rpartition(" ")
    path, _, line = place.rpartition(":")
    return _Frame((path, name), line, name)


def _templates(spans: list[Span]) -> dict[str, str]:
    """Prompt templates that only the gateway knows, by the ids of the application's spans above it."""
    known = [s for s in spans if s.code is None and s.fingerprint and s.kind in (LLM, EMBEDDING) and s.parent_id]
    if not known:
        return {}
    by_id = {s.span_id: s for s in spans}
    templates: dict[str, str] = {}
    for span in known:
        above = by_id.get(span.parent_id or "")
        for _ in range(_PARENT_HOPS):
            if above is None or above.kind not in _CALL_KINDS:
                break
            templates[above.span_id] = span.fingerprint or ""
            above = by_id.get(above.parent_id or "")
    return templates


def _wrappers(signatures: set[frozenset[_Seen]], counts: dict[_Seen, int]) -> set[tuple[str, str]]:
    wrappers: set[tuple[str, str]] = set()
    for signature in signatures:
        passing = _passing(signature)
        for function, callers in passing.items():
            outer = {frame.function for frame, _ in callers}
            lines = {(frame.function, frame.line) for frame, _ in callers}
            templates = {template for _, template in callers}
            if len(outer) > 1 or (len(lines) > 1 and len(templates) > 1):
                wrappers.add(function)
    for function, callers in _passing(counts).items():
        by_caller: defaultdict[tuple[str, str], set[str | None]] = defaultdict(set)
        for frame, template in callers:
            by_caller[frame.function].add(template)
        sets = list(by_caller.values())
        distinct = set().union(*sets)
        calls = sum(n for seen, n in counts.items() if function in {_frame(c).function for c in seen.chain})
        apart = sum(len(s) for s in sets) == len(distinct)
        if len(sets) > 1 and apart and None not in distinct and len(distinct) * 2 <= calls:
            wrappers.add(function)
    return wrappers


def _passing(calls: Iterable[_Seen]) -> dict[tuple[str, str], set[tuple[_Frame, str | None]]]:
    """For each function calls pass through: the frames that called it, with the templates they came with."""
    passing: defaultdict[tuple[str, str], set[tuple[_Frame, str | None]]] = defaultdict(set)
    for seen in calls:
        for inner, outer in zip(seen.chain, seen.chain[1:], strict=False):
            function, caller = _frame(inner).function, _frame(outer)
            if caller.function != function:  # recursion
                passing[function].add((caller, seen.template))
    return passing


def _choose(chain: Chain, wrappers: set[tuple[str, str]]) -> str:
    """The innermost frame with a name of its own; of shared functions only, the outermost."""
    for code in chain:
        frame = _frame(code)
        if frame.function not in wrappers and not frame.name.endswith(">"):  # "<lambda>", "<listcomp>"
            return code
    return chain[-1]


def _several_calls(signatures: set[frozenset[_Seen]], chosen: dict[Chain, str]) -> set[tuple[str, str]]:
    """Functions that make different LLM calls on different lines within one request."""
    several: set[tuple[str, str]] = set()
    for signature in signatures:
        lines: defaultdict[tuple[str, str], dict[str, str | None]] = defaultdict(dict)
        for seen in signature:
            if seen.kind == LLM:
                frame = _frame(chosen[seen.chain])
                lines[frame.function][frame.line] = seen.template
        several.update(f for f, by_line in lines.items() if len(by_line) > 1 and _differ(list(by_line.values())))
    return several


def _differ(templates: list[str | None]) -> bool:
    return None in templates or len(set(templates)) == len(templates)


def _with_line(code: str) -> str:
    return f"{code}:{_frame(code).line}"
