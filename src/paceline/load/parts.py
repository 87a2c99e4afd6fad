"""What a scenario is composed of beside its plain fields: stages, recorded traffic, checks, turns, variables."""

import re
from typing import Any

import msgspec

HOLD, RAMP, BURST = "hold", "ramp", "burst"
SEQUENCE, UNIFORM, ZIPF = "sequence", "uniform", "zipf"
AUTO, AZURE, MOONCAKE, RUN = "auto", "azure", "mooncake", "run"


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stretch of a load shape. The level is users in a closed scenario, requests per second in an open one.

    "hold": the level is at once what is asked (a step) and stays. "ramp": it goes there evenly from where it was.
    "burst": it is at once what is asked, and afterwards what it was before. Before the first stage it is 0.
    """

    kind: str = HOLD
    to_users: int | None = None
    to_rate_per_s: float | None = None
    duration_s: float

    def __post_init__(self) -> None:
        one_of("kind", self.kind, HOLD, RAMP, BURST)
        require(self.duration_s > 0, "duration_s of a stage must be above 0", self.duration_s)
        both = (self.to_users is not None) + (self.to_rate_per_s is not None)
        require(both == 1, "a stage has either to_users or to_rate_per_s", None)
        require(self.level >= 0, "the level of a stage must not be negative", self.level)

    @property
    def level(self) -> float:
        """Users or requests per second."""
        return float(self.to_rate_per_s if self.to_users is None else self.to_users)  # type: ignore[arg-type]


class Trace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Recorded traffic to send again: a file of one of the known formats, or the folder of a Paceline run.

    "azure": CSV with TIMESTAMP, ContextTokens, GeneratedTokens. "mooncake": JSON lines with timestamp (ms),
    input_length, output_length, hash_ids. "run": its requests' intended times and keys; the scenario's body files
    hold the bodies. "auto" decides by the name. Window and gap cap count in recorded time, before `time_scale`.
    """

    path: str
    format: str = AUTO
    time_scale: float = 1.0  # times faster than recorded
    max_gap_s: float | None = None  # longer silences are cut to this
    start_s: float = 0.0  # the window: what came earlier is left out
    length_s: float | None = None
    scenario: str | None = None  # of a run that has several
    call_model: str = "gpt-4o-mini"  # named in the chat calls made from lengths
    stream: bool = False  # ask for streamed answers

    def __post_init__(self) -> None:
        one_of("format", self.format, AUTO, AZURE, MOONCAKE, RUN)
        for name in ("time_scale", "max_gap_s", "length_s"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} of a trace must be above 0", value)
        require(self.start_s >= 0, "start_s of a trace must not be negative", self.start_s)


class JsonCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something a JSON answer must hold. `pointer` is a JSON pointer (RFC 6901): "/choices/0/text", "" is all of it."""

    pointer: str
    equals: Any = msgspec.UNSET  # unset: any value will do
    exists: bool = True  # False: there must be nothing

    def __post_init__(self) -> None:
        check_pointer(self.pointer)
        both = not self.exists and self.equals is not msgspec.UNSET
        require(not both, f"check of {self.pointer!r}: equals and exists = false exclude each other", None)


class Checks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an answer must be to count as success; what fails is recorded as the error "check", with its name."""

    status: list[int] = []  # one of these, even one above 399; empty: any below 400
    contains: list[str] = []  # each of these, in the text of the body
    lacks: list[str] = []  # none of these
    matches: list[str] = []  # each of these regular expressions, somewhere in the text
    json: list[JsonCheck] = []

    def __post_init__(self) -> None:
        for status in self.status:
            require(100 <= status <= 599, "a status is between 100 and 599", status)
        for pattern in self.matches:
            check_pattern(pattern)


class Capture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value taken from an answer, for later turns: by JSON pointer, header name or regular expression."""

    json: str | None = None
    header: str | None = None
    regex: str | None = None  # its first group, or all of the match
    default: Any = msgspec.UNSET  # when it is not there; unset: that is a failed check

    def __post_init__(self) -> None:
        given = [source for source in (self.json, self.header, self.regex) if source is not None]
        require(len(given) == 1, "a capture has one of json, header and regex", None)
        if self.json is not None:
            check_pointer(self.json)
        if self.regex is not None:
            check_pattern(self.regex)


class Turn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request of a conversation. `{{name}}` in path, headers and body is replaced by a variable or a capture."""

    name: str | None = None  # of the endpoint in figures; default: method and path as written here
    method: str = "POST"
    path: str = "/"
    body: Any = None  # JSON; None: no body, or the next one of `bodies`
    bodies: str | None = None  # JSON-lines file
    headers: dict[str, str] = {}
    captures: dict[str, Capture] = {}
    checks: Checks | None = None  # instead of the scenario's

    def __post_init__(self) -> None:
        require(self.body is None or self.bodies is None, "a turn has either body or bodies", None)
        check_request(self.path, self.headers)
        for name in self.captures:
            check_name(name)


class Variable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the value of a `{{name}}` comes from: a column of a CSV or JSON-lines file, a list, a counter or a UUID.

    Drawn once a conversation or, without turns, once a request. Variables with the same `file` and `pick` come from
    the same row.
    """

    file: str | None = None  # ".csv" with a header line, anything else JSON lines
    column: str | None = None  # default: the variable's own name
    values: list[Any] = []
    counter: int | None = None  # the first value; it goes up by one
    uuid: bool = False
    pick: str = SEQUENCE  # of rows and values; "uniform": drawn with the scenario's seed

    def __post_init__(self) -> None:
        one_of("pick", self.pick, SEQUENCE, UNIFORM)
        given = (self.file is not None) + bool(self.values) + (self.counter is not None) + self.uuid
        require(given == 1, "a variable has one of file, values, counter and uuid", None)
        require(self.column is None or self.file is not None, "column belongs to a file", self.column)


def check_request(path: str, headers: dict[str, str]) -> None:
    """Path and headers can go on the wire. Raises ValueError."""
    require(path.startswith("/") and not re.search(r"\s", path), "path must begin with / and hold no space", path)
    for name, value in headers.items():
        plain = re.fullmatch(r"[!-9;-~]+", name) and value.isprintable()
        require(bool(plain), f"header {name!r} must be a name without colon and a value on one line", value)


def check_pointer(pointer: str) -> None:
    """It is a JSON pointer. Raises ValueError."""
    fine = pointer == "" or (pointer.startswith("/") and not re.search(r"~(?![01])", pointer))
    require(fine, "a JSON pointer is empty or begins with /", pointer)


def check_pattern(pattern: str) -> None:
    """It is a regular expression. Raises ValueError."""
    try:
        re.compile(pattern)
    except re.error as error:
        msg = f"{pattern!r} is not a regular expression: {error}"
        raise ValueError(msg) from error


def check_name(name: str) -> None:
    """It can stand between double braces. Raises ValueError."""
    fine = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)
    require(bool(fine), "a variable's name is letters, digits and underscores", name)


def one_of(name: str, value: str, *known: str) -> None:
    """Raises ValueError unless `value` is one of the known ones."""
    require(value in known, f"{name} must be one of {', '.join(known)}", value)


def require(condition: bool, message: str, value: object) -> None:
    """Raises ValueError with the message, and the value unless it is None."""
    if not condition:
        raise ValueError(message if value is None else f"{message}; got {value!r}")
