"""What a call asks for."""

import msgspec


class Ask(msgspec.Struct, kw_only=True):
    """One call that wants to pass. `deadline_s` is on the clock of the event loop.

    `ticket` is set when the call is first admitted. A call that has to come again, after a 429 say, asks with the same
    Ask and so goes before those that wait; for another model or key make another Ask.
    """

    tenant: bytes  # whose turn it is is decided between tenants
    key: bytes  # digest of the provider's credential: providers count by it
    model: str
    tokens: int = 0  # estimated, input and output
    priority: int = 0  # higher goes first; from -8 to 8, beyond counts as the end
    deadline_s: float | None = None  # the wait must be over by then; None: after the policy's max_wait_s
    ticket: int | None = None
