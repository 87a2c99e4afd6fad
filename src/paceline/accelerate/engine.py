"""The engine: one call answered by the policy: kept, shared, or asked of a provider. A hit needs no task.

The gateway serves it over HTTP, the transports call it inside the application: the same code, the same policies.
"""

from collections.abc import Callable

from paceline.accelerate.asked import AskedReader
from paceline.accelerate.cache import Cache, Found
from paceline.accelerate.caller import Caller
from paceline.accelerate.directives import BYPASS, REFRESH, Directives, read_directives
from paceline.accelerate.limits import Limits
from paceline.accelerate.passing import PassedOn, pass_on
from paceline.accelerate.policy import Policy
from paceline.accelerate.prompts.prefix import PrefixWatch
from paceline.accelerate.record import CallRecord, Listener, Tape
from paceline.accelerate.replay import Replays
from paceline.accelerate.routing.begun import Begun
from paceline.accelerate.routing.make import make_dispatcher
from paceline.accelerate.routing.providers import Clients, Providers
from paceline.accelerate.sending import Sender
from paceline.accelerate.sharing import SharedCalls
from paceline.accelerate.single_flight import SingleFlight
from paceline.clock import Clock, RunClock
from paceline.wire.client import HttpClient
from paceline.wire.clients import Client
from paceline.wire.http import HttpRequest, Outcome, Reply


class Engine:
    """Providers behind a policy. `handle` answers a request; `listener` hears of every finished call, once.

    Whoever makes it calls `close`. A client that is handed in stays its owner's.

    Args:
        providers: Their URLs, or one client through which every dialect's calls go.
        policy: None: calls are passed on, and counted.
        client: Makes the client of a server from its URL.
        takes_over: An engine that is to be closed: its cache goes on in this one, if both want the same.
        beside: An engine of the same policy whose cache and calls under way this one shares; it is closed last.
        detail: The listener wants to know the parts of each prompt, as spans tell them; costs 10 to 20 us a new call.
        tapes: Records of calls hold request and answer, see `recorded`.
        speed: A simulated provider runs that many times faster; the policy's seconds are at its real pace.

    Raises:
        ConfigError: a URL, a level of the cache or a variable that holds a credential is wrong.
    """

    def __init__(
        self,
        providers: Providers | Client,
        policy: Policy | None = None,
        *,
        client: Callable[[str], Client] = HttpClient,
        takes_over: "Engine | None" = None,
        beside: "Engine | None" = None,
        listener: Listener | None = None,
        detail: bool = False,
        tapes: bool = False,
        clock: Clock | None = None,
        speed: float = 1.0,
    ) -> None:
        policy = (policy or Policy()).at_speed(speed)
        self._clock = clock or RunClock()
        self._tell = listener or _nobody
        self._clients = Clients(client)
        self._connections = providers if not isinstance(providers, Providers) else self._clients
        self._owns_cache = beside is None
        self.cache = self._cache(policy, takes_over, beside)
        self.limits = None if policy.limits.is_off else Limits(policy.limits)
        self.prefixes = PrefixWatch() if policy.prompts.watch_prefix else None
        self.dispatcher = make_dispatcher(
            policy.routing, self._clients, providers, limits=self.limits, gated=policy.limits.adaptive.enabled
        )
        self._listener = self._tell if self.prefixes is None else self._watch_prefix
        self._reader = AskedReader(policy, self.prefixes, detail=detail)
        self.sender = Sender(self.dispatcher, self._reader, policy.batching, self._clock)
        flights = beside.flights if beside is not None else SingleFlight()
        self.flights: SingleFlight | None = flights if policy.single_flight else None
        self._shared = SharedCalls(self.sender, self.flights, self.cache)
        self._replays = Replays()
        self._tapes = tapes

    def handle(self, request: HttpRequest, caller: Caller | None = None) -> Outcome:
        """Answer one request; `caller` where it is known who asks."""
        said: Directives | None = request.notes.get(self)
        if said is None:
            tenant = caller.tenant if caller is not None else None
            said = request.notes[self] = read_directives(request.method, request.target, request.headers, tenant)
        clock = self._clock
        record = CallRecord(
            self._listener, clock, request.method, said.path, said.kind, said.traceparent, clock.ticks_ns()
        )
        record.caller = caller
        key = None
        if said.dialect is not None:
            record.step = said.step
            if said.priority or caller is not None:  # a caller with a key may step back, not forward
                record.priority = said.priority if caller is None else caller.priority + min(0, said.priority)
            asked = record.asked = self._reader.read(said, request.target, request.body, caller)
            key = asked.key
            if self._tapes:
                record.tape = Tape(request)
        if key is None or said.mode == BYPASS:
            sent = self.sender.send(request, record)
            return PassedOn(sent, request) if isinstance(sent, Begun) else pass_on(sent, request, record)
        if said.mode != REFRESH:
            found = self.cache.peek(key) if self.cache is not None else None
            if found is not None:
                return self._hit(found, key, request, said, record)
            joined = self._shared.join(request, key, said, record)
            if joined is not None:
                return joined
        return self._shared.lead(request, key, said, record)

    @property
    def is_busy(self) -> bool:
        """True while a call is under way."""
        state = self.state()
        return any(state[name] for name in ("in_flight", "waiting", "flights", "upstream_busy"))

    def state(self) -> dict[str, int]:
        """What is held now: calls, connections, kept answers."""
        limits, memory = self.limits, self.cache.memory if self.cache is not None else None
        return {
            "in_flight": limits.in_flight if limits is not None else self.dispatcher.in_flight,
            "waiting": limits.waiting if limits is not None else 0,
            "flights": len(self._shared),
            "upstream_busy": self._connections.busy,
            "upstream_idle": self._connections.idle,
            "cache_entries": len(memory) if memory is not None else 0,
            "cache_bytes": memory.used_bytes if memory is not None else 0,
        }

    async def close(self) -> None:
        """Give up what is under way for nobody, and let go of everything the engine made itself."""
        await self._shared.close()
        await self.sender.close()
        await self._clients.close()
        if self.limits is not None:
            await self.limits.close()
        if self.cache is not None and self._owns_cache:
            await self.cache.close()

    def _cache(self, policy: Policy, takes_over: "Engine | None", beside: "Engine | None") -> Cache | None:
        if not policy.cache.enabled:
            return None
        if beside is not None:
            return beside.cache
        if takes_over is None or takes_over.cache is None or takes_over.cache.policy != policy.cache:
            return Cache(policy.cache)
        takes_over._owns_cache = False  # noqa: SLF001 - another engine
        return takes_over.cache

    def _hit(self, found: Found, key: bytes, request: HttpRequest, said: Directives, record: CallRecord) -> Reply:
        if found.wants_refresh:
            again = CallRecord(
                self._listener, record.clock, record.method, said.path, said.kind, said.traceparent, record.start_ns
            )
            again.caller, again.step, again.asked = record.caller, record.step, record.asked
            self._shared.refresh(request, key, said, again)
        record.hit(200, found.value.cost_usd, found.level)
        return self._replays.reply(key, found)

    def _watch_prefix(self, record: CallRecord) -> None:
        if self.prefixes is not None and record.asked is not None and record.attempts:
            self.prefixes.saw(record.asked.prefix, record.usage)
        self._tell(record)


def _nobody(record: CallRecord) -> None:
    """Hears of a call and does nothing."""
