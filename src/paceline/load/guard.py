"""Guard: what goes wrong in a callback ends the scenario. The event loop would only log it, and we wait for ever."""

from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


def guarded(callback: Callable[P, None], fail: Callable[[Exception], None]) -> Callable[P, None]:
    """The callback, with any exception handed to `fail`: a bug, or a full disk."""

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits the scenario
            fail(error)

    return call
