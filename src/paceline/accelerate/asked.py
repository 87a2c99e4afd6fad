"""Asked: one model call, read once for equal bytes: whose it is, what it asks, what is sent for it."""

from collections import OrderedDict
from typing import Any

import msgspec

from paceline.accelerate.directives import Directives
from paceline.accelerate.key import call_key
from paceline.accelerate.policy import Policy
from paceline.accelerate.routes import model_for
from paceline.model.span import (
    PROMPT_HASH,
    PROMPT_HISTORY_TOKENS,
    PROMPT_SYSTEM_TOKENS,
    PROMPT_USER_TOKENS,
    STREAM,
    AttributeValue,
)
from paceline.wire.call import LLM, CallInfo, Dialect, decode_object

_MEMO_BYTES = 32 * 1024 * 1024
_ENTRY_BYTES = 2000


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One model call after routing."""

    dialect: Dialect
    info: CallInfo
    target: str  # to send; the model may be in it
    body: bytes  # to send
    tenant: bytes
    key: bytes | None  # None: the policy shares no answers, or this call cannot be answered by another's
    attributes: dict[str, AttributeValue]  # what its span says whatever comes of it
    name: str  # of its span
    fingerprint: str | None = None


class AskedReader:
    """Reads calls. The same bytes asked again cost a dictionary look-up instead of two passes over the JSON."""

    def __init__(self, policy: Policy, origin: bytes = b"") -> None:
        """`origin`: which server the calls go to, where one process has several."""
        self._policy = policy
        self._origin = origin
        self._memo: OrderedDict[tuple[object, ...], Asked] = OrderedDict()
        self._memo_bytes = 0

    def read(self, said: Directives, target: str, body: bytes) -> Asked:
        """What this call asks, after routing."""
        model = model_for(self._policy.routes, said.step) if self._policy.routes else None
        memo_key = (said.tenant, said.key_part, target, model, body)
        asked = self._memo.get(memo_key)
        if asked is None:
            asked = self._memo[memo_key] = self._work_out(said, target, model, body)
            self._memo_bytes += len(body) + _ENTRY_BYTES
            while self._memo_bytes > _MEMO_BYTES:
                (*_, old_body), _ = self._memo.popitem(last=False)
                self._memo_bytes -= len(old_body) + _ENTRY_BYTES  # type: ignore[arg-type]
        return asked

    def _work_out(self, said: Directives, target: str, model: str | None, body: bytes) -> Asked:
        dialect, kind = said.dialect, said.kind
        assert dialect is not None  # noqa: S101 - only model calls are read
        if model is not None:
            target, body = dialect.with_model(target, body, model)
        path = target.partition("?")[0]
        call = decode_object(body)
        if call is None:
            return Asked(
                dialect=dialect,
                info=CallInfo(kind=kind),
                target=target,
                body=body,
                tenant=said.tenant,
                key=None,
                attributes={},
                name=f"{_verb(kind)} unknown",
            )
        canon = dialect.canonical(call)
        info = dialect.describe(kind, path, call, canon)
        shared = self._policy.shares and not info.stateful
        return Asked(
            dialect=dialect,
            info=msgspec.structs.replace(info, texts=[], system_text=""),  # long, and not needed to pass a call on
            target=target,
            body=body,
            tenant=said.tenant,
            key=self._key(said, path, call, canon) if shared else None,
            attributes=_attributes(info),
            name=f"{_verb(kind)} {info.model or 'unknown'}",
            fingerprint=f"prompt:{info.template_hash}",
        )

    def _key(self, said: Directives, path: str, call: dict[str, Any], canon: bytes) -> bytes:
        assert said.dialect is not None  # noqa: S101 - only model calls are read
        place = self._origin + b"\n" + said.key_part
        return call_key(said.tenant, place, said.dialect, path, call, canon, mode=self._policy.cache.key)


def _verb(kind: str) -> str:
    return "chat" if kind == LLM else kind


def _attributes(info: CallInfo) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        STREAM: info.stream,
        PROMPT_SYSTEM_TOKENS: info.system_tokens,
        PROMPT_HISTORY_TOKENS: info.history_tokens,
        PROMPT_USER_TOKENS: info.user_tokens,
    }
    if info.prompt_hash is not None:
        attributes[PROMPT_HASH] = info.prompt_hash
    return attributes
