"""What httpx is told when it makes its transport, and therefore has to be told to ours instead."""

import ssl

import msgspec


class TransportSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How servers are reached. A client that is given a transport ignores its own options of these names."""

    verify: ssl.SSLContext | bool = True  # as httpx takes it
    http2: bool = False  # of https servers; not through a proxy
    proxy: str | None = None  # URL; through httpx's own transport, with the policy still applied
    trust_env: bool = (
        True  # HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, which httpx ignores once given a transport
    )
    connections: int = 1000  # to one server at once; above it requests wait their turn
    idle_s: float = 50.0  # a connection unused this long is closed
    servers: int = 64  # remembered at once, the least recently used idle one leaves first
