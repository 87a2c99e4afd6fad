"""The layer in process: an httpx transport that answers a client's calls by the policy, without a hop.

    openai.AsyncOpenAI(http_client=openai.DefaultAsyncHttpxClient(transport=AsyncTransport(policy)))

`docs/in-process.md` shows it for every SDK. One class serves clients of `httpx` and of `httpx2`.
"""

from paceline.accelerate.transport.asynchronous import AsyncTransport
from paceline.accelerate.transport.settings import TransportSettings
from paceline.accelerate.transport.synchronous import Transport

__all__ = ["AsyncTransport", "Transport", "TransportSettings"]
