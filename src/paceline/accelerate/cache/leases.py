"""Leases: which keys this process has the right to compute, and waiting for who has it instead."""

import asyncio
import os
from typing import Any

from .lease import Lease
from .levels import Found, Levels, Question

_POLL_S, _LONGEST_POLL_S, _POLL_GROWTH = 0.002, 0.05, 1.5


class Leases:
    """The leases of one cache, over the levels that processes share."""

    def __init__(self, levels: Levels) -> None:
        self._levels = levels
        self._held: dict[bytes, Lease] = {}
        self._pid = os.getpid()

    def get(self, key: bytes) -> Lease | None:
        """The lease held here."""
        return self._held.get(key)

    async def take(self, key: bytes) -> Lease | None:
        """The right to compute a key, across processes where host or fleet are on. None: somebody has it."""
        lease, fleet = self.take_here(key), self._levels.fleet
        if lease is None or fleet is None or not fleet.policy.lease:
            return lease
        try:
            taken = await lease.in_fleet(fleet)
        except BaseException:
            lease.release()
            raise
        if not taken:
            lease.release()
            return None
        self._note(lease)
        return lease

    def take_here(self, key: bytes) -> Lease | None:
        """The same among the processes of this host, at once."""
        if self._is_held_here(key):
            return None
        levels = self._levels
        lease = self._held[key] = Lease(key, self._over)
        try:
            taken = levels.host is None or lease.on_host(levels.host)
        except BaseException:
            lease.release()
            raise
        if not taken:
            lease.release()
            return None
        self._note(lease)
        return lease

    def without(self, key: bytes) -> Lease:
        """For who has waited long enough and computes without the right to: it only notes when that began."""
        lease = Lease(key, self._over)
        self._note(lease)
        return lease

    async def wait_for(self, question: Question, deadline_s: float, as_type: Any, newer_than_s: float) -> Found | None:
        """The answer of whoever holds the lease; None: it gave it back without one, or the time (loop's) has come."""
        loop = asyncio.get_running_loop()
        pause_s = _POLL_S
        while True:
            found = await self._levels.look_for_other(question, as_type, newer_than_s)
            if found is not None:
                return found
            if not await self._is_held(question.key):
                return await self._levels.look_for_other(question, as_type, newer_than_s)  # stored, then released
            left_s = deadline_s - loop.time()
            if left_s <= 0:
                return None
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * _POLL_GROWTH, _LONGEST_POLL_S)

    def release_all(self) -> None:
        """Give back what is held."""
        for lease in list(self._held.values()):
            lease.release()

    def _note(self, lease: Lease) -> None:
        """What is computed from here on is not stored if an invalidation comes in between."""
        levels = self._levels
        if levels.counter[0] != levels.heard:
            levels.hear()
        lease.number, lease.host_number = levels.recent.number, levels.heard

    def _over(self, lease: Lease) -> None:
        if self._held.get(lease.key) is lease:
            del self._held[lease.key]

    def _is_held_here(self, key: bytes) -> bool:
        if self._pid != os.getpid():  # a fork: the leases are the parent's
            self._pid = os.getpid()
            self._held.clear()
        return key in self._held

    async def _is_held(self, key: bytes) -> bool:
        levels = self._levels
        if self._is_held_here(key) or (levels.host is not None and levels.host.is_leased(key)):
            return True
        return levels.fleet is not None and await levels.fleet.is_leased(key)
