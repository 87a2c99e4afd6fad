"""Asked: a model call as the gateway sees it, worked out once for equal bytes."""

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from paceline.accelerate.key import TENANT_HEADERS, call_key, tenant_of
from paceline.accelerate.policy import Policy
from paceline.accelerate.routes import model_for, with_model
from paceline.model.span import (
    PROMPT_HASH,
    PROMPT_HISTORY_TOKENS,
    PROMPT_SYSTEM_TOKENS,
    PROMPT_USER_TOKENS,
    STREAM,
    AttributeValue,
)
from paceline.wire.openai import LLM, CallInfo, canonical, decode_object, describe_call

_MEMO_BYTES = 32 * 1024 * 1024
_ENTRY_BYTES = 2000


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One model call: whose it is, what it asks, the bytes to send."""

    info: CallInfo
    body: bytes  # with the routed model in it
    tenant: bytes
    key: bytes | None  # None: the policy shares no answers, or the body is not a JSON object
    attributes: dict[str, AttributeValue]  # what its span says whatever comes of it
    name: str  # of its span
    fingerprint: str | None = None


class AskedReader:
    """Reads calls. The same bytes asked again cost a dictionary look-up instead of two passes over the JSON."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._memo: OrderedDict[tuple[object, ...], Asked] = OrderedDict()
        self._memo_bytes = 0

    def read(
        self,
        kind: str,
        target: str,
        headers: Sequence[tuple[bytes, bytes]],
        step: str | None,
        body: bytes,
        tenant: bytes | None = None,
    ) -> Asked:
        """What this call asks, after routing; `tenant` None: the credentials among the headers tell."""
        model = model_for(self._policy.routes, step) if self._policy.routes else None
        secrets = tuple(header for header in headers if header[0] in TENANT_HEADERS)
        memo_key = (tenant or secrets, target, model, body)
        asked = self._memo.get(memo_key)
        if asked is None:
            asked = self._memo[memo_key] = self._work_out(kind, target, tenant or tenant_of(secrets), model, body)
            self._memo_bytes += len(body) + _ENTRY_BYTES
            while self._memo_bytes > _MEMO_BYTES:
                (*_, old_body), _ = self._memo.popitem(last=False)
                self._memo_bytes -= len(old_body) + _ENTRY_BYTES  # type: ignore[arg-type]
        return asked

    def _work_out(self, kind: str, target: str, tenant: bytes, model: str | None, body: bytes) -> Asked:
        if model is not None:
            body = with_model(body, model)
        call = decode_object(body)
        if call is None:
            info = CallInfo(kind=kind)
            return Asked(info=info, body=body, tenant=tenant, key=None, attributes={}, name=f"{_verb(kind)} unknown")
        canon = canonical(call)
        info = describe_call(kind, call, canon)
        return Asked(
            info=msgspec.structs.replace(info, texts=[], system_text=""),  # long, and not needed to pass a call on
            body=body,
            tenant=tenant,
            key=call_key(tenant, target, call, canon, mode=self._policy.cache.key) if self._policy.shares else None,
            attributes=_attributes(info),
            name=f"{_verb(kind)} {info.model or 'unknown'}",
            fingerprint=f"prompt:{info.template_hash}",
        )


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
