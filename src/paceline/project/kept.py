"""Kept: whether the recorded application keeps whole answers, under which key, and how reliably."""

import math

from paceline.model.request import Request
from paceline.project.app import Kept

_CACHED_SHARE = 0.5  # of the repeated questions answered from a cache: there is one


def kept_of(requests: list[Request], hits: list[bool]) -> Kept | None:
    """Replays the keys against the recorded hits. None when nothing, or too little, came from a cache."""
    if not any(hits):
        return None
    by_key = _replay(requests, hits, [r.key for r in requests])
    by_text = _replay(requests, hits, [r.text_key or r.key for r in requests])
    # The coarser key explains the hits only if what it alone calls a repetition did hit as well.
    text_only = (by_text.repeats - by_key.repeats, by_text.repeats_hit - by_key.repeats_hit)
    use_text = text_only[0] >= 5 and text_only[1] >= _CACHED_SHARE * text_only[0]
    seen = by_text if use_text else by_key
    share = seen.repeats_hit / seen.repeats if seen.repeats else 1.0
    joins = sum(r.cache == "join" for r in requests)
    if share < _CACHED_SHARE and not joins:
        return None
    return Kept(by_text=use_text, hit_share=share, shares_flights=joins > 0, warm=frozenset(seen.warm))


class _Replayed:
    """What a cache under one sort of key would have seen."""

    def __init__(self) -> None:
        self.repeats = 0  # asked again after an answer had been given
        self.repeats_hit = 0
        self.warm: set[str] = set()


def _replay(requests: list[Request], hits: list[bool], keys: list[str]) -> _Replayed:
    seen = _Replayed()
    answered_s: dict[str, float] = {}
    joined = {r.trace_id for r in requests if r.cache == "join"}
    for request, key in zip(requests, keys, strict=True):
        if request.ok:
            answered_s[key] = min(request.ended_s, answered_s.get(key, request.ended_s))
    for request, hit, key in zip(requests, hits, keys, strict=True):
        first_s = answered_s.get(key, math.inf)
        if first_s < request.started_s:
            seen.repeats += 1
            seen.repeats_hit += hit
        elif hit and first_s >= request.ended_s and request.trace_id not in joined:
            seen.warm.add(key)
    return seen
