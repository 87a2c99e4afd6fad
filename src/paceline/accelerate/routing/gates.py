"""What routing needs of the limits (`paceline.accelerate.limits`)."""

from typing import Protocol

from paceline.accelerate.limits import Ask, Signal


class Permit(Protocol):
    """A call may be under way."""

    def heard(self, signal: Signal) -> None:
        """What the provider's answer said about its limits; a refusal holds the gate."""

    def used(self, tokens: int) -> None:
        """What it really took, in place of the estimate."""

    def leave(self) -> None:
        """The call is over. Once; more often does nothing."""


class Limits(Protocol):
    """Lets calls through as the provider's limits allow."""

    def try_admit(self, ask: Ask) -> Permit | None:
        """A permit when there is no need to wait."""

    async def admit(self, ask: Ask) -> Permit:
        """Wait for one. Raises Overloaded at once when that cannot be before the ask's deadline."""
