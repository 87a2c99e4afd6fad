"""Orders: what is said between whoever drives a scenario with several processes, and those processes."""

import ssl

import msgspec

from paceline.errors import ConfigError, InputError, MeasurementError, ServiceError
from paceline.load.scenario import Scenario
from paceline.model.run import ScenarioInfo

ERRORS = {kind.__name__: kind for kind in (ServiceError, ConfigError, InputError, MeasurementError)}


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """What can be told of a TLS context to another process: whom to trust beside the system's authorities."""

    verify: bool
    check_hostname: bool
    authorities: str  # PEM

    @classmethod
    def of(cls, tls: ssl.SSLContext) -> "Trust":
        """Of a context; client certificates stay behind."""
        pem = "".join(map(ssl.DER_cert_to_PEM_cert, tls.get_ca_certs(binary_form=True)))
        return cls(verify=tls.verify_mode != ssl.CERT_NONE, check_hostname=tls.check_hostname, authorities=pem)

    def context(self) -> ssl.SSLContext:
        """A context that does the same."""
        tls = ssl.create_default_context()
        if self.authorities:
            tls.load_verify_locations(cadata=self.authorities)
        tls.check_hostname = self.check_hostname
        if not self.verify:
            tls.verify_mode = ssl.CERT_NONE
        return tls


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to do."""

    scenario: Scenario
    base_url: str
    run: str
    speed: float
    part: int
    of: int
    trust: Trust | None


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Connected and warm; waits for the start."""


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Where the worker stands."""

    snapshot: msgspec.Raw  # as Snapshot encodes it


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It could not begin or go on."""

    kind: str
    message: str


class Result(msgspec.Struct, frozen=True, tag=True):
    """It is over."""

    info: ScenarioInfo
    latencies: bytes
    lag: bytes
    wall_s: float


Message = Ready | Progress | Failed | Result
