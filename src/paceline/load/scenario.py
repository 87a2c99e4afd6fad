"""Scenario: what load to drive, and the fixed sequence of bodies it sends."""

import hashlib
import itertools
import random
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from paceline.errors import ConfigError, InputError
from paceline.load.parts import (
    BURST,
    RAMP,
    SEQUENCE,
    UNIFORM,
    ZIPF,
    Checks,
    Stage,
    Trace,
    Turn,
    Variable,
    check_name,
    check_request,
    one_of,
    require,
)

CLOSED, OPEN = "closed", "open"
CONSTANT, POISSON, GAMMA, REPLAY = "constant", "poisson", "gamma", "replay"
_ASCII_SPACES = bytes(code if chr(code).isalnum() else 32 for code in range(128)).ljust(256)


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One endpoint of a mix; `weight` is its share of the requests, relative to the others'."""

    method: str = "POST"
    path: str = "/"
    bodies: str | None = None  # JSON-lines file; None: requests without a body
    weight: float = 1.0
    headers: dict[str, str] = {}
    checks: Checks | None = None  # instead of the scenario's

    def __post_init__(self) -> None:
        require(self.weight > 0, "weight must be above 0", self.weight)
        check_request(self.path, self.headers)


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One load test. Times and rates are at the provider's pace; the driver divides by the run's speed.

    Closed: `users` send one request after another until `requests` are sent or `duration_s` is over.
    Open: requests arrive at `rate_per_s` for `duration_s` (or until `requests`), whoever has answered.
    Paths of body files are relative to the folder given to `resolved`.
    """

    name: str
    model: str = CLOSED
    users: int | None = None
    requests: int | None = None
    duration_s: float | None = None
    ramp_s: float = 0.0  # one user starts in each of `users` equal parts of it, at a random moment
    think_s: float = 0.0  # between an answer and the same user's next request
    rate_per_s: float | None = None
    shape: list[Stage] = []  # steps, ramps and bursts; then it says users or rate, and how long
    arrivals: str = CONSTANT  # "constant", "poisson", "gamma" (bursty: see `cv`), "replay" (see `trace`)
    cv: float = 1.0  # of the time between gamma arrivals: standard deviation over mean
    trace: Trace | None = None  # recorded traffic to send again
    method: str = "POST"
    path: str = "/"
    bodies: str | None = None
    headers: dict[str, str] = {}
    mix: list[Endpoint] = []  # several endpoints; then `method`, `path` and `bodies` are not used
    turns: list[Turn] = []  # a conversation each user has again and again; then there is no `mix`
    variables: dict[str, Variable] = {}  # for `{{name}}` in bodies, paths and headers
    checks: Checks = Checks()  # what every answer must be
    pick: str = SEQUENCE  # "sequence" (file order, repeating), "uniform", "zipf"
    zipf_s: float = 1.0  # exponent: the k-th most popular question is asked 1/k**s as often as the first
    seed: int = 0
    timeout_s: float = 120.0  # for the whole answer, from when we wanted to send
    connections: int | None = None  # most open at once; None: `users`, or what the process may open
    processes: int = 1  # that share the work of driving it
    warmup: int = 0  # requests sent before the scenario starts, not recorded
    key_fields: list[str] = []  # fields of a JSON body that make the question (no session, no id); empty: all of it
    cache_headers: tuple[str, ...] = ("x-paceline-cache", "x-cache")  # the first one present says hit, miss or join
    stop_error_ratio: float | None = None  # give up above this share of errors (after 100 requests)
    when: str = "every"  # in tune: "every" phase, or "ends" (first and last)
    main: bool = False  # in tune: the one that is projected

    @property
    def endpoints(self) -> list[Endpoint]:
        """The mix, or the single endpoint as a mix of one."""
        single = Endpoint(method=self.method, path=self.path, bodies=self.bodies)
        return self.mix or [single]

    def resolved(self, folder: Path) -> "Scenario":
        """The same scenario with its files as paths that start at `folder`."""
        return self.moved(lambda name: str(folder / name))

    def moved(self, to: Callable[[str], str]) -> "Scenario":
        """The same scenario with each path of a file replaced by what `to` makes of it."""

        def place(name: str | None) -> str | None:
            return None if name is None else to(name)

        return msgspec.structs.replace(
            self,
            bodies=place(self.bodies),
            mix=[msgspec.structs.replace(e, bodies=place(e.bodies)) for e in self.mix],
            turns=[msgspec.structs.replace(t, bodies=place(t.bodies)) for t in self.turns],
            variables={k: msgspec.structs.replace(v, file=place(v.file)) for k, v in self.variables.items()},
            trace=self.trace and msgspec.structs.replace(self.trace, path=to(self.trace.path)),
        )

    def __post_init__(self) -> None:
        one_of("model", self.model, CLOSED, OPEN)
        one_of("arrivals", self.arrivals, CONSTANT, POISSON, GAMMA, REPLAY)
        one_of("pick", self.pick, SEQUENCE, UNIFORM, ZIPF)
        one_of("when", self.when, "every", "ends")
        if self.shape:
            self._take_shape()
        limits = ("users", "requests", "duration_s", "rate_per_s", "timeout_s", "cv", "zipf_s", "connections")
        for name in (*limits, "processes"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be above 0", value)
        for name in ("ramp_s", "think_s", "warmup"):
            require(getattr(self, name) >= 0, f"{name} must not be negative", getattr(self, name))
        check_request(self.path, self.headers)
        replays = self.arrivals == REPLAY
        require(replays == (self.trace is not None), 'trace and arrivals = "replay" belong together', None)
        if self.model == CLOSED:
            require(not replays, "a replay is an open scenario", self.model)
            require(self.users is not None, "a closed scenario needs users", self.users)
            require(
                self.rate_per_s is None, "rate_per_s belongs to an open scenario; closed ones have users", self.model
            )
        else:
            require(self.users is None, "users belong to a closed scenario; open ones have rate_per_s", self.model)
            if replays:
                require(self.rate_per_s is None, "a replay has the rate it was recorded with", self.rate_per_s)
            else:
                require(self.rate_per_s is not None, "an open scenario needs rate_per_s", self.rate_per_s)
        require(bool(self.requests or self.duration_s or replays), f"{self.name}: give requests or duration_s", None)
        self._check_conversation()

    def _take_shape(self) -> None:
        """Fill in what a shape implies: how long, and the most users or the mean rate."""
        closed = self.model == CLOSED
        wanted = "to_users" if closed else "to_rate_per_s"
        for stage in self.shape:
            fits = getattr(stage, wanted) is not None
            require(fits, f"stages of {'a closed' if closed else 'an open'} scenario have {wanted}", None)
        require(self.ramp_s == 0, "ramp_s and shape exclude each other: a shape has stages that ramp", self.ramp_s)
        duration_s = sum(stage.duration_s for stage in self.shape)
        before, area = 0.0, 0.0  # as in load/shapes.py, which has the whole of it
        for stage in self.shape:
            level = (before + stage.level) / 2 if stage.kind == RAMP else stage.level
            area += level * stage.duration_s
            before = before if stage.kind == BURST else stage.level
        require(area > 0, "a shape needs a stage above 0", None)
        implied: list[tuple[str, float]] = [("duration_s", duration_s)]
        if closed:
            implied.append(("users", max(int(stage.level) for stage in self.shape)))
        else:
            implied.append(("rate_per_s", area / duration_s))
        for name, value in implied:
            given = getattr(self, name)
            require(given in (None, value), f"{name} and shape exclude each other: the shape says it", given)
            msgspec.structs.force_setattr(self, name, value)

    def _check_conversation(self) -> None:
        if self.turns:
            alone = not (self.mix or self.bodies) and self.model == CLOSED
            require(alone, "turns belong to a closed scenario without mix and bodies", None)
        for name in self.variables:
            check_name(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """One request to send, trace header aside. `key` and `text_key` identify what it asks (16 hex digits)."""

    endpoint: str  # "POST /chat"
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    data: bytes
    key: str  # the very same request has the same one
    text_key: str  # so has one that differs in case, punctuation, white space or numbers outside strings
    place: int = 0  # of its endpoint in the mix, or of its turn
    wants_answer: bool = False  # the source is told what it was answered
    once: bool = False  # made for one request; not worth remembering


def sequence(scenario: Scenario, count: int | None = None) -> list[Body]:
    """The first `count` requests of the scenario (default: its `requests`), the same for the same seed.

    Raises:
        ConfigError: a body file is missing. InputError: it is empty or a line is malformed.
    """
    count = scenario.requests if count is None else count
    if count is None:
        msg = "count is needed: the scenario is bounded by time, not by a number of requests"
        raise ValueError(msg)
    return list(itertools.islice(draws(scenario), count))


def draws(scenario: Scenario, pools: "list[list[Question]] | None" = None) -> Iterator[Body]:
    """The scenario's requests without end. Files are read at the first one; errors as in `sequence`.

    `pools`: what each endpoint may be asked, where it has been read before.
    """
    rng = random.Random(f"{scenario.seed}:mix")
    endpoints = scenario.endpoints
    pools = pools or [questions(endpoint, scenario, i) for i, endpoint in enumerate(endpoints)]
    sources = [picks(asked, scenario, random.Random(f"{scenario.seed}:{i}")) for i, asked in enumerate(pools)]
    if len(sources) == 1:
        yield from sources[0]
    weights = [endpoint.weight for endpoint in endpoints]
    while True:
        yield next(rng.choices(sources, weights)[0])


@dataclass(frozen=True, slots=True)
class Question:
    """One line of a body file."""

    variants: list[Body]  # the same question worded or typed differently; one is drawn
    weight: float


def picks(asked: list[Question], scenario: Scenario, rng: random.Random) -> Iterator[Body]:
    """Questions in the scenario's order of picking. Weights count for "uniform" and "zipf"."""
    if len(asked) == 1 and len(asked[0].variants) == 1:
        return itertools.repeat(asked[0].variants[0])
    return _picks(asked, scenario, rng)


def _picks(asked: list[Question], scenario: Scenario, rng: random.Random) -> Iterator[Body]:
    if scenario.pick == SEQUENCE:
        order: Iterator[Question] = itertools.cycle(asked)
    else:
        ranked = list(asked)
        weights = [q.weight for q in ranked]
        if scenario.pick == ZIPF:
            # Shuffled first, so that popularity does not follow the file's own order (often by topic).
            rng.shuffle(ranked)
            weights = [q.weight / rank**scenario.zipf_s for rank, q in enumerate(ranked, start=1)]
        cumulative = list(itertools.accumulate(weights))
        order = (rng.choices(ranked, cum_weights=cumulative)[0] for _ in itertools.repeat(None))
    for question in order:
        yield question.variants[0] if len(question.variants) == 1 else rng.choice(question.variants)


def questions(endpoint: Endpoint, scenario: Scenario, place: int = 0, inline: bytes | None = None) -> list[Question]:
    """What an endpoint may be asked: its file's lines, or the one body given; errors as in `sequence`."""
    if endpoint.bodies is None:
        return [Question([_body(endpoint, scenario, place, inline or b"")], 1.0)]
    path = Path(endpoint.bodies)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        msg = f"cannot read the bodies file {path}: {error.strerror}"
        raise ConfigError(msg) from error
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            raw, weight = _parse(path, number, line.strip())
            found.append(Question([_body(endpoint, scenario, place, data) for data in raw], weight))
    if not found:
        msg = f"{path} holds no request bodies: expected one JSON value a line"
        raise InputError(msg, path=path)
    return found


def _parse(path: Path, number: int, line: bytes) -> tuple[list[bytes], float]:
    """Exact bytes of the bodies on one line, and its weight.

    A line is a body, `{"body": BODY, "weight": W}` or `{"variants": [BODY, ...], "weight": W}`; an object with
    any other field is a body.
    """

    def fail(problem: str) -> InputError:
        return InputError(f"{path}, line {number}: {problem}", path=path, line=number)

    try:
        msgspec.json.decode(line)
        if not line.startswith(b"{"):
            return [line], 1.0
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        kinds = fields.keys() & {"body", "variants"}
        if len(kinds) != 1 or fields.keys() - kinds - {"weight"}:
            return [line], 1.0
        weight = msgspec.json.decode(fields.get("weight", b"1"), type=float)
        bodies = (
            [fields["body"]] if "body" in fields else msgspec.json.decode(fields["variants"], type=list[msgspec.Raw])
        )
    except msgspec.DecodeError as error:
        raise fail(f"{error}; expected one JSON value") from error
    if not weight > 0:
        raise fail(f"weight must be above 0; got {weight:g}")
    if not bodies:
        raise fail("variants is empty; give at least one body")
    return [bytes(raw) for raw in bodies], weight


def _body(endpoint: Endpoint, scenario: Scenario, place: int, data: bytes) -> Body:
    headers = {**scenario.headers, **endpoint.headers}
    if data and not any(header.lower() == "content-type" for header in headers):
        headers["Content-Type"] = "application/json"
    key, text_key = body_keys(f"{endpoint.method} {endpoint.path}", data, scenario.key_fields)
    checks = scenario.checks if endpoint.checks is None else endpoint.checks
    return Body(
        endpoint=f"{endpoint.method} {endpoint.path}",
        method=endpoint.method,
        path=endpoint.path,
        headers=tuple(headers.items()),
        data=data,
        key=key,
        text_key=text_key,
        place=place,
        wants_answer=checks != Checks(),
    )


def body_keys(name: str, data: bytes, key_fields: list[str]) -> tuple[str, str]:
    """`key` and `text_key` of a JSON body sent to the endpoint of this name; None of `key_fields`: all of it counts."""
    asked: object = msgspec.json.decode(data) if data else None
    exact = data
    if key_fields and isinstance(asked, dict):
        asked = {name: asked[name] for name in key_fields if name in asked}
        exact = msgspec.json.encode(asked, order="sorted")
    texts = [name, *map(plain_text, _texts(asked))]
    return digest(name.encode() + b"\n" + exact), digest("\n".join(texts).encode())


def plain_text(text: str) -> str:
    """The text in lower case with runs of punctuation and white space as one space, none at the ends."""
    if text.isascii():  # as below, ten times as fast
        return " ".join(text.lower().encode().translate(_ASCII_SPACES).decode().split())
    kept = (c if unicodedata.category(c)[0] in "LNM" else " " for c in unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(kept).split())


def _texts(value: object) -> Iterator[str]:
    """All string leaves; object fields in order of their names, so that field order does not matter."""
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _texts(item)
        case dict():
            for name in sorted(value):
                yield from _texts(value[name])


def digest(data: bytes) -> str:
    """16 hex digits that stand for the data."""
    return hashlib.sha256(data).hexdigest()[:16]
