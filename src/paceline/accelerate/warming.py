"""Warming a cache from a run: recorded answers under the keys that the policy in force gives to their calls."""

import time
from pathlib import Path

from paceline.accelerate.asked import AskedReader
from paceline.accelerate.cache import Cache, Warmed, warm
from paceline.accelerate.caller import Caller
from paceline.accelerate.directives import read_directives
from paceline.accelerate.policy import Policy
from paceline.accelerate.recorded import Recorded, answer_files, read_answers


async def warm_from(cache: Cache, source: Path, policy: Policy, *, as_new: bool = False) -> Warmed:
    """Put the answers of a run folder, or of a file as `cache.export` writes it, into every level of a cache.

    Args:
        cache: Whose levels; of the same policy's [cache].
        source: A run recorded with its answers, or a file.
        policy: Keys, trimming and rules of the services that are to find them.
        as_new: Their age counts from now; otherwise from when they were made, and what has become too old is left out.

    Raises:
        InputError: there is no such file, the run holds no answers, or a line is none; path and line.
    """
    files = answer_files(source) if source.is_dir() else []
    if not files:
        return await warm(cache, source)
    reader = AskedReader(policy)
    now_s, lives_s = time.time(), max((getattr(policy.cache, name).ttl_s for name in policy.cache.levels), default=0.0)
    stored = too_old = unkeyed = 0
    for path in files:
        for call in read_answers(path):
            age_s = 0.0 if as_new else max(0.0, now_s - call.created_s)
            key, ttl_s, tags = _kept_as(reader, call)
            if key is None:
                unkeyed += 1
            elif age_s >= (ttl_s or lives_s):
                too_old += 1
            else:
                write = cache.put(
                    key, call.reply, ttl_s=ttl_s, tags=tags, compute_s=call.compute_s, created_s=now_s - age_s
                )
                if write is not None:
                    await write
                stored += 1
    await cache.flush()
    return Warmed(stored=stored, too_old=too_old, unkeyed=unkeyed)


def _kept_as(reader: AskedReader, call: Recorded) -> tuple[bytes | None, float | None, tuple[str, ...]]:
    """Key, time to live and tags of a call; no key: this policy does not keep it."""
    headers = [(name.encode(), value.encode("latin-1")) for name, value in call.headers]
    said = read_directives("POST", call.target, headers, call.tenant)
    if said.dialect is None:
        return None, None, ()
    caller = Caller(tenant=call.tenant, name=call.caller) if call.caller is not None else None
    return reader.read(said, call.target, call.body, caller).key, said.ttl_s, said.tags
