"""Steps: which function of the application a call belongs to, seen over the whole run.

The recorder resolves shared wrappers as calls happen (`callers`); the run as a whole shows more: the first calls get
their final name too, prompt templates tell the users of a wrapper apart, and one function's several calls get a
name each.
"""

from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import msgspec

from paceline.model.span import CACHE, CALLERS, DB, EMBEDDING, HTTP_CLIENT, LLM, PROMPT_HASH, QUEUE, TOOL, Span
from paceline.trace.callers import function_of, wrappers_in
from paceline.trace.calls import GATEWAY

_CALL_KINDS = frozenset((LLM, EMBEDDING, DB, CACHE, TOOL, QUEUE, HTTP_CLIENT))
_PARENT_HOPS = 4  # from the gateway's span up to the SDK's

Chain = tuple[str, ...]  # frames "path:line function", innermost first


class _Seen(NamedTuple):
    """One sort of call: the frames it came through, what it is, and its prompt template where known."""

    chain: Chain
    kind: str
    template: str | None


class _Prompt(NamedTuple):
    template: str | None
    hash: str | None


_NO_PROMPT = _Prompt(None, None)


def resolve_steps(spans: Iterable[Span]) -> list[Span]:
    """The spans, each call's `code` replaced by its innermost application frame that is not a wrapper.

    A function is a wrapper when calls of one request pass through it from more than one calling function
    (`callers`), or from more than one line with different prompt templates; or when, over the run, its callers use
    it with template sets that have nothing in common. A function that itself makes several different LLM calls in
    one request gets a step per line, "handle:88". Order is kept; spans without code are untouched.

    Wrong when a step that deserves its own name is called from two functions in one request: each caller becomes a
    step instead.
    """
    spans = list(spans)
    prompts = _prompts(spans)
    chains: dict[str, Chain] = {}
    traces: defaultdict[str, dict[str, _Seen]] = defaultdict(dict)
    counts: defaultdict[_Seen, int] = defaultdict(int)
    for span in spans:
        if span.code is None or span.kind not in _CALL_KINDS or span.service == GATEWAY:
            continue
        callers = span.attributes.get(CALLERS)
        chain = chains[span.span_id] = tuple(callers) if isinstance(callers, list) and callers else (span.code,)
        if span.kind != HTTP_CLIENT:  # the SDK's span above it says more
            prompt = prompts.get(span.span_id, _NO_PROMPT)
            seen = _Seen(chain, span.kind, span.fingerprint or prompt.template)
            counts[seen] += 1
            # The very same call from two places is one step done twice, so it is no evidence of a wrapper.
            same = traces[span.trace_id]
            key = prompt.hash or span.span_id
            same[key] = min(same[key], seen, key=_chain_of) if key in same else seen
    requests = {frozenset(seen.values()) for seen in traces.values()}
    wrappers = _wrappers(requests, counts)
    chosen = {chain: _choose(chain, wrappers) for chain in set(chains.values())}
    several = _several_calls(requests, chosen)
    code = {chain: _with_line(frame) if function_of(frame) in several else frame for chain, frame in chosen.items()}
    return [_recoded(s, code[chains[s.span_id]]) if s.span_id in chains else s for s in spans]


def _recoded(span: Span, code: str) -> Span:
    return span if code == span.code else msgspec.structs.replace(span, code=code)


def _chain_of(seen: _Seen) -> Chain:
    return seen.chain


def _prompts(spans: list[Span]) -> dict[str, _Prompt]:
    """What only the gateway knows of a prompt, by the ids of the application's spans above the gateway's."""
    known = [s for s in spans if s.service == GATEWAY and s.kind in (LLM, EMBEDDING) and s.parent_id]
    if not known:
        return {}
    by_id = {s.span_id: s for s in spans}
    prompts: dict[str, _Prompt] = {}
    for span in known:
        hashed = span.attributes.get(PROMPT_HASH)
        prompt = _Prompt(span.fingerprint, hashed if isinstance(hashed, str) else None)
        above = by_id.get(span.parent_id or "")
        for _ in range(_PARENT_HOPS):
            if above is None or above.kind not in _CALL_KINDS:
                break
            prompts[above.span_id] = prompt
            above = by_id.get(above.parent_id or "")
    return prompts


def _wrappers(requests: set[frozenset[_Seen]], counts: dict[_Seen, int]) -> frozenset[str]:
    seen_chains = {frozenset(seen.chain for seen in request) for request in requests}
    wrappers = set(wrappers_in((str(i), chain) for i, chains in enumerate(seen_chains) for chain in chains))
    for request in requests:
        for function, users in _users(request, wrappers).items():
            if len({frame for frame, _ in users}) > 1 and len({template for _, template in users}) > 1:
                wrappers.add(function)
    for function, users in _users(counts, wrappers).items():
        by_user: defaultdict[str, set[str | None]] = defaultdict(set)
        for frame, template in users:
            by_user[function_of(frame)].add(template)
        distinct = {template for _, template in users}
        apart = sum(len(used) for used in by_user.values()) == len(distinct) and None not in distinct
        calls = sum(n for seen, n in counts.items() if function in {_function(c) for c in seen.chain})
        if len(by_user) > 1 and apart and len(distinct) * 2 <= calls:  # templates that repeat, not one a call
            wrappers.add(function)
    return frozenset(wrappers)


def _users(calls: Iterable[_Seen], wrappers: set[str]) -> dict[str, set[tuple[str, str | None]]]:
    """For each function calls pass through: the frames that called it, wrappers looked through, and the templates."""
    users: defaultdict[str, set[tuple[str, str | None]]] = defaultdict(set)
    for seen in calls:
        frames = [frame for frame in seen.chain if _function(frame) not in wrappers]
        for inner, outer in pairwise(frames):
            if _function(inner) != _function(outer):  # recursion
                users[_function(inner)].add((outer, seen.template))
    return users


def _choose(chain: Chain, wrappers: frozenset[str]) -> str:
    """The innermost frame with a name of its own; of shared functions only, the outermost."""
    for frame in chain:
        if _function(frame) not in wrappers and not frame.endswith(">"):  # "<lambda>", "<listcomp>"
            return frame
    return chain[-1]


def _several_calls(requests: set[frozenset[_Seen]], chosen: dict[Chain, str]) -> set[str]:
    """Functions that make different LLM calls on different lines within one request."""
    several: set[str] = set()
    for request in requests:
        lines: defaultdict[str, dict[str, str | None]] = defaultdict(dict)
        for seen in request:
            if seen.kind == LLM:
                frame = chosen[seen.chain]
                lines[_function(frame)][frame] = seen.template
        several.update(f for f, by_line in lines.items() if len(by_line) > 1 and _differ(list(by_line.values())))
    return several


def _differ(templates: list[str | None]) -> bool:
    return None in templates or len(set(templates)) == len(templates)


def _with_line(frame: str) -> str:
    line = frame.rpartition(" ")[0].rpartition(":")[2]
    return f"{frame}:{line}"


_function = lru_cache(maxsize=65_536)(function_of)
