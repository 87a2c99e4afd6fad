"""Wrapping one method of a library so that each call becomes a span."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from paceline.record.recorder import LiveSpan, Recorder, current
from paceline.record.warn import quietly

Begin = Callable[[Any, tuple[Any, ...], dict[str, Any]], LiveSpan | None]
End = Callable[[LiveSpan, Any], bool | None]


def wrap(recorder: Recorder, owner: Any, name: str, begin: Begin, end: End | None = None) -> None:
    """Replace `owner.name` by a recorded version; nothing happens when this version of the library lacks it.

    Args:
        recorder: Where spans go.
        owner: A class.
        name: Its method, plain or async.
        begin: (self, args, kwargs) -> the span, already started, or None to leave this call alone.
        end: (span, result); may add attributes. True: the span goes on (a stream), somebody else finishes it.
    """
    original = owner.__dict__.get(name)
    if original is None or hasattr(original, "__paceline__"):
        return
    begin = quietly(begin)
    after = quietly(end) if end else None
    make = _async_version if inspect.iscoroutinefunction(original) else _sync_version
    recorded = make(recorder, original, begin, after)
    recorded.__paceline__ = original
    setattr(owner, name, recorded)


def _sync_version(recorder: Recorder, original: Any, begin: Begin, after: End | None) -> Any:
    @functools.wraps(original)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        span = begin(self, args, kwargs)
        if span is None:
            return original(self, *args, **kwargs)
        token = current.set(span)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            recorder.finish(span, error)
            raise
        finally:
            current.reset(token)
        if after is None or not after(span, result):
            recorder.finish(span)
        return result

    return recorded


def _async_version(recorder: Recorder, original: Any, begin: Begin, after: End | None) -> Any:
    @functools.wraps(original)
    async def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        span = begin(self, args, kwargs)
        if span is None:
            return await original(self, *args, **kwargs)
        token = current.set(span)
        try:
            result = await original(self, *args, **kwargs)
        except BaseException as error:
            recorder.finish(span, error)
            raise
        finally:
            current.reset(token)
        if after is None or not after(span, result):
            recorder.finish(span)
        return result

    return recorded


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    """An argument given by position (self not counted) or by name; None when absent."""
    return args[position] if len(args) > position else kwargs.get(name)
