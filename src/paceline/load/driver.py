"""Drive a scenario at a target and record every request."""

import ssl
from collections.abc import Callable

from paceline.load.address import Address
from paceline.load.driving import INTERRUPTED, Driving
from paceline.load.scenario import Scenario
from paceline.load.snapshot import Snapshot
from paceline.model.run import ScenarioInfo
from paceline.store.folder import RunFolder, disk_errors, open_run

__all__ = ["INTERRUPTED", "Snapshot", "drive"]


async def drive(
    scenario: Scenario,
    base_url: str,
    run: RunFolder,
    *,
    speed: float | None = None,
    progress: Callable[[Snapshot], None] | None = None,
    tls: ssl.SSLContext | None = None,
) -> ScenarioInfo:
    """Drive one scenario; write its requests to the run, add its ScenarioInfo to run.json and return it.

    Requests that fail are records with an `error`, never exceptions. The scenario ends early, with `stopped` set, when
    the target is gone or the error ratio passes `stop_error_ratio`.

    Args:
        scenario: What to send; times are divided by `speed`.
        base_url: Scheme, host, port and, where there is one, a path prefix.
        run: Where records go.
        speed: Times faster than real; None takes the run's.
        progress: Called four times a second and at the end.
        tls: For https, instead of the system's default context.

    Raises:
        ServiceError: the target cannot be reached at all. ConfigError, InputError: something in the scenario or its
            body files is wrong. MeasurementError: the disk is full.
        CancelledError: sending stopped, what was in flight got 2 s, everything is recorded and `stopped` is set.
    """
    speed = run.info.speed if speed is None else speed
    address = Address.parse(base_url, tls)
    with disk_errors(run.path):
        driving = Driving(scenario, address, run, speed, progress)
        try:
            await driving.prepare()
            await driving.run()
        finally:
            await driving.close()
            info = driving.info()
            if driving.sent:
                add_info(run, info)
    return info


def add_info(run: RunFolder, info: ScenarioInfo) -> None:
    """Put it into run.json; read again first, because the process that records the service writes it too."""
    others = [s for s in open_run(run.path, salvage=True).info.scenarios if s.name != info.name]
    run.update(scenarios=[*others, info])
