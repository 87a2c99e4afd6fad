"""`paceline cache invalidate | clear --gateway URL`: asks a running gateway, whatever levels its cache has."""

import asyncio
import os

import msgspec

from paceline.errors import ConfigError, ServiceError
from paceline.wire.client import HttpClient, Timeouts

_TIMEOUTS = Timeouts(connect_s=5.0, first_byte_s=30.0, silence_s=30.0)


def invalidate(url: str, key_env: str | None, *, tags: list[str], tenant: str | None, everything: bool) -> bytes:
    """What the gateway answered, as JSON. ConfigError: it refuses; UpstreamError: it does not answer."""
    wanted = {"tags": tags, "tenant": tenant, "everything": everything}
    return asyncio.run(_post(url, _headers(key_env), msgspec.json.encode(wanted)))


def _headers(key_env: str | None) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", b"application/json")]
    if key_env is not None:
        key = os.environ.get(key_env, "").strip()
        if not key:
            msg = f"--key-env names {key_env}, which is not set; export it with a gateway key of the role operator"
            raise ConfigError(msg)
        headers.append((b"authorization", b"Bearer " + key.encode()))
    return headers


async def _post(url: str, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    client = HttpClient(url, timeouts=_TIMEOUTS)
    try:
        reply = await client.request("POST", "/-/cache/invalidate", headers, body)
        answer = await reply.read()
    finally:
        await client.close()
    if reply.status in (401, 403):
        msg = f"{url} refuses ({reply.status}): {answer.decode(errors='replace')}; say --key-env"
        raise ConfigError(msg)
    if reply.status != 200:
        msg = f"{url} answered {reply.status}: {answer[:500].decode(errors='replace')}"
        raise ServiceError(msg)
    return answer
