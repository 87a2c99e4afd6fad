"""Drive a scenario at a target and record every request."""

import ssl
from collections.abc import Callable
from typing import Protocol

from paceline.load.address import Address
from paceline.load.driving import INTERRUPTED, Driving, add_info
from paceline.load.scenario import Scenario
from paceline.load.snapshot import Snapshot
from paceline.load.workers import drive_together
from paceline.model.run import ScenarioInfo
from paceline.store.folder import RunFolder, disk_errors

__all__ = ["INTERRUPTED", "Drive", "Snapshot", "drive"]


class Drive(Protocol):
    """`drive`, or what drives on other machines in its place."""

    async def __call__(
        self,
        scenario: Scenario,
        base_url: str,
        run: RunFolder,
        *,
        speed: float | None = None,
        progress: Callable[[Snapshot], None] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> ScenarioInfo:
        """As `drive`."""


async def drive(
    scenario: Scenario,
    base_url: str,
    run: RunFolder,
    *,
    speed: float | None = None,
    progress: Callable[[Snapshot], None] | None = None,
    tls: ssl.SSLContext | None = None,
    processes: int | None = None,
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
        processes: That share the work; None takes the scenario's. Above 1, `tls` must not hold a client certificate.

    Raises:
        ServiceError: the target cannot be reached at all. ConfigError, InputError: something in the scenario or its
            body files is wrong. MeasurementError: the disk is full.
        CancelledError: sending stopped, what was in flight got 2 s, everything is recorded and `stopped` is set.
    """
    speed = run.info.speed if speed is None else speed
    processes = scenario.processes if processes is None else processes
    if processes > 1:
        return await drive_together(scenario, base_url, run, processes, speed=speed, progress=progress, tls=tls)
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
