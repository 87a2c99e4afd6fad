"""What is said between Paceline and a session of Locust."""

import msgspec

from paceline.load.snapshot import Snapshot
from paceline.load.workers import Failed
from paceline.model.run import ScenarioInfo


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

    snapshot: Snapshot
    users: int  # most at once so far


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It is over."""

    info: ScenarioInfo
    cut_off: int  # requests under way when Locust ended its users
    exit_code: int | None  # what a listener of the locustfile's own set
    exceptions: dict[str, int]  # in tasks and on_start, how often each


SessionMessage = SessionProgress | Failed | Ended
