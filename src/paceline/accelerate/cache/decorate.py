"""Cached: a coroutine function whose equal calls share an answer."""

import functools
import inspect
from collections.abc import Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .keys import Key

if TYPE_CHECKING:
    from .cache import Cache

T = TypeVar("T")


class Cached(Generic[T]):
    """What `cache.cached(...)` makes of a function: call it as before; `key_of` and `forget` know its keys."""

    __name__: str

    def __init__(
        self,
        cache: "Cache",
        function: Callable[..., Coroutine[Any, Any, T]],
        *,
        ttl_s: float | None,
        tags: Collection[str] | Callable[..., Collection[str]],
        key: Callable[..., Key] | None,
        tenant: str | bytes | Callable[..., str | bytes | None] | None,
        as_type: Any,
        copy: bool,
    ) -> None:
        if not inspect.iscoroutinefunction(function):
            msg = f"cached() decorates coroutine functions; {function!r} is none. Use get_or_compute for it"
            raise TypeError(msg)
        functools.update_wrapper(self, function)
        self._cache = cache
        self._function = function
        self._signature = inspect.signature(function)
        self._prefix = f"{function.__module__}.{function.__qualname__}"
        self._key, self._tags, self._tenant = key, tags, tenant
        self._ttl_s, self._as_type, self._copy = ttl_s, as_type, copy

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, T]:
        """The answer, from the cache or from the function."""
        tags = self._tags(*args, **kwargs) if callable(self._tags) else self._tags
        return self._cache.get_or_compute(
            self.key_of(*args, **kwargs),
            lambda: self._function(*args, **kwargs),
            ttl_s=self._ttl_s,
            tags=tags,
            tenant=self._tenant_of(args, kwargs),
            as_type=self._as_type,
            copy=self._copy,
        )

    def key_of(self, *args: Any, **kwargs: Any) -> Key:
        """The key of one call. TypeError: an argument cannot be part of a key."""
        if self._key is not None:
            return self._key(*args, **kwargs)
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return (self._prefix, *bound.args, *sorted(bound.kwargs.items()))

    async def forget(self, *args: Any, **kwargs: Any) -> int:
        """Drop the answer of one call everywhere."""
        keys = [self.key_of(*args, **kwargs)]
        return await self._cache.invalidate(keys=keys, tenant=self._tenant_of(args, kwargs))

    def _tenant_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | bytes | None:
        return self._tenant(*args, **kwargs) if callable(self._tenant) else self._tenant
