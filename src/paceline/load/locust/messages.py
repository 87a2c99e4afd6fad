"""What is said between Paceline and its programs in Locust's processes."""

import msgspec

from paceline.load.orders import Failed
from paceline.model.run import ScenarioInfo

CHANNEL = "paceline"  # the type of our messages among Locust's own


class SessionOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a session is to do."""

    locustfile: str
    arguments: list[str]  # of Locust's own command line
    run: str
    scenario: str
    duration_s: float | None  # None: the locustfile's shape says
    stop_error_ratio: float | None


class SessionProgress(msgspec.Struct, frozen=True, tag=True):
    """Where it stands."""

    snapshot: msgspec.Raw  # as Snapshot encodes it
    users: int  # most at once so far


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It is over."""

    info: ScenarioInfo
    cut_off: int  # requests under way when Locust ended its users, or that it did not report for an exception
    exit_code: int | None  # what a listener of the locustfile's own set
    exceptions: dict[str, int]  # in tasks and on_start, how often each


SessionMessage = SessionProgress | Failed | Ended


# --- from Paceline to its master --------------------------------------------------------------------------------------


class Listen(msgspec.Struct, frozen=True, tag=True):
    """The first message: where to expect workers."""

    host: str
    port: int


class Assign(msgspec.Struct, frozen=True, tag=True):
    """Hand a parcel to a worker; what comes back belongs into this run."""

    worker: str
    run: str
    parcel: bytes


class Tell(msgspec.Struct, frozen=True, tag=True):
    """A line for the process that a worker has started."""

    worker: str
    line: str


class Dismiss(msgspec.Struct, frozen=True, tag=True):
    """End that process."""

    worker: str


ToMaster = Listen | Assign | Tell | Dismiss


# --- from the master to Paceline --------------------------------------------------------------------------------------


class Listening(msgspec.Struct, frozen=True, tag=True):
    """Workers may come."""

    port: int


class Joined(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker has come."""

    worker: str
    host: str
    paceline: str  # its version
    ahead_s: float  # of ours, to be added to its monotonic clock
    within_s: float


class Said(msgspec.Struct, frozen=True, tag=True):
    """A line of the process that a worker has started."""

    worker: str
    line: str


class Over(msgspec.Struct, frozen=True, tag=True):
    """That process has ended, and all it recorded has arrived; or the worker is gone."""

    worker: str
    how: str
    is_gone: bool = False


FromMaster = Listening | Joined | Said | Over | Failed
