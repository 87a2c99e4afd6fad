"""Clients of the model provider, and what happens when it says no."""

import asyncio
import functools
import inspect
import random
import ssl
import time
from collections.abc import Callable
from typing import Any

import openai
import openai.resources.chat
import openai.resources.embeddings

from support.settings import Settings

# Our own retries instead of the SDK's: those gave up after two, and users saw errors at peak hours.
BACKOFF_S = (1, 2, 4, 8, 16, 32)
RETRIED = (openai.RateLimitError, openai.InternalServerError, openai.APIConnectionError)

# Reading the system's certificates takes 65 ms of CPU, so this much is shared between clients.
TLS = ssl.create_default_context()


def new_client() -> openai.OpenAI:
    """A client with its own connections; the caller's thread owns it."""
    return openai.OpenAI(max_retries=0, timeout=120, http_client=openai.DefaultHttpxClient(verify=TLS))


def shared_client() -> openai.AsyncOpenAI:
    """The one client of the event loop, with a pool of kept-alive connections."""
    return openai.AsyncOpenAI(max_retries=0, timeout=120)


def retrying(call: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a model call, plain or async: when the provider refuses, back off and try again, 7 times in all.

    `call` is a method of something that has `settings`.
    """

    @functools.wraps(call)
    def patient(self: Any, *args: Any, **kwargs: Any) -> Any:
        for step_s in BACKOFF_S:
            try:
                return call(self, *args, **kwargs)
            except RETRIED:
                time.sleep(_pause_s(step_s, self.settings))
        return call(self, *args, **kwargs)

    @functools.wraps(call)
    async def patient_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        for step_s in BACKOFF_S:
            try:
                return await call(self, *args, **kwargs)
            except RETRIED:
                await asyncio.sleep(_pause_s(step_s, self.settings))
        return await call(self, *args, **kwargs)

    return patient_async if inspect.iscoroutinefunction(call) else patient


def _pause_s(step_s: float, settings: Settings) -> float:
    """The step and up to a second of jitter, so that not everybody comes back at once."""
    return (step_s + random.random()) * settings.time_scale
