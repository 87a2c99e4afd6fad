"""Asked: one model call, read once for equal bytes: whose it is, what it asks, what is sent for it."""

from collections import OrderedDict
from typing import Any, Protocol

import msgspec

from paceline.accelerate.caller import Caller
from paceline.accelerate.directives import Directives
from paceline.accelerate.key import call_key
from paceline.accelerate.policy import Policy
from paceline.accelerate.prompts.prefix import PrefixWatch, PromptPrefix
from paceline.accelerate.prompts.trim import trim
from paceline.accelerate.routing.rules import Rules
from paceline.model.span import (
    PROMPT_HASH,
    PROMPT_HISTORY_TOKENS,
    PROMPT_SYSTEM_TOKENS,
    PROMPT_USER_TOKENS,
    STREAM,
    AttributeValue,
)
from paceline.wire.call import DECODING, LLM, CallInfo, Dialect, decode_object
from paceline.wire.tokens import BYTES_PER_TOKEN

_MEMO_BYTES = 32 * 1024 * 1024
_ENTRY_BYTES = 2000


class _Glance(msgspec.Struct):
    model: Any = None
    stream: Any = None


_decode_glance = msgspec.json.Decoder(_Glance).decode


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One model call as it is sent: trimmed and routed."""

    dialect: Dialect
    info: CallInfo
    target: str  # to send; the model may be in it
    body: bytes  # to send
    tenant: bytes
    key: bytes | None = None  # None: the policy shares no answers, or this call cannot be answered by another's
    attributes: dict[str, AttributeValue] = {}  # what its span says whatever comes of it
    fingerprint: str | None = None
    group: str | None = None  # of deployments that serve it; None: those of its model
    trimmed: dict[str, int] = {}  # estimated tokens taken out of the prompt, by technique
    prefix: PromptPrefix | None = None  # for the watch, where it watches

    @property
    def name(self) -> str:
        """Of its span."""
        kind = self.info.kind
        return f"{'chat' if kind == LLM else kind} {self.info.model or 'unknown'}"


def input_tokens(asked: Asked) -> int:
    """Estimated tokens of the prompt; reads it now where nobody needed that before."""
    if asked.attributes:  # it was described
        return asked.info.input_tokens
    call = decode_object(asked.body)
    kind = asked.info.kind
    if call is None or kind is None:
        return asked.info.input_tokens
    path = asked.target.partition("?")[0]
    return asked.dialect.describe(kind, path, call, asked.dialect.canonical(call)).input_tokens


class Read(Protocol):
    """Reads calls as far as somebody needs it."""

    def __call__(self, said: Directives, target: str, body: bytes, caller: Caller | None = None) -> Asked:
        """What this call asks."""
        ...


class AskedReader:
    """Reads calls, each as far as somebody needs it. Equal bytes asked again cost a dictionary look-up."""

    def __init__(self, policy: Policy, watch: PrefixWatch | None = None, *, detail: bool = False) -> None:
        """`detail`: somebody wants to know the parts of the prompt, whatever the policy needs."""
        self._policy = policy
        self._watch = watch
        self._rules = Rules(policy.routing)
        # Only what can matter is part of the memo's key, so that equal calls of several steps are read once.
        self._by_step = self._rules.by_step or any(rule.step is not None for rule in policy.prompts.rules)
        self._trims = policy.prompts.is_on or any(rule.is_on for rule in policy.prompts.rules)
        self._describes = detail or self._trims or watch is not None or not self._rules.is_empty
        tries_again = policy.routing.retries.enabled or policy.routing.hedge.enabled
        self._shares = policy.shares
        reads = self._describes or self._shares or tries_again
        self.read: Read = self._read if reads else _glance
        self._memo: OrderedDict[tuple[object, ...], Asked] = OrderedDict()
        self._memo_bytes = 0

    def _read(self, said: Directives, target: str, body: bytes, caller: Caller | None = None) -> Asked:
        name = caller.name if caller is not None and self._rules.by_caller else None
        memo_key = (said.tenant, said.key_part, target, said.step if self._by_step else None, name, body)
        asked = self._memo.get(memo_key)
        if asked is None:
            asked = self._work_out(said, target, body, name) if self._describes else self._keyed(said, target, body)
            self._memo[memo_key] = asked
            self._memo_bytes += len(body) + _ENTRY_BYTES
            while self._memo_bytes > _MEMO_BYTES:
                (*_, old_body), _ = self._memo.popitem(last=False)
                self._memo_bytes -= len(old_body) + _ENTRY_BYTES  # type: ignore[arg-type]
        return asked

    def _keyed(self, said: Directives, target: str, body: bytes) -> Asked:
        """The call with its key and whether it may be made twice, without a look at its prompt."""
        dialect, path = said.dialect, said.path
        assert dialect is not None  # noqa: S101 - only model calls are read
        call = decode_object(body)
        if call is None:
            return _glance(said, target, body)
        stateful = dialect.is_stateful(call)
        info = CallInfo(
            kind=said.kind,
            model=dialect.model_of(path, call),
            stream=dialect.is_stream(path, call),
            stateful=stateful,
            user_tokens=len(body) // BYTES_PER_TOKEN,
        )
        shared = self._shares and not stateful
        return Asked(
            dialect=dialect,
            info=info,
            target=target,
            body=body,
            tenant=said.tenant,
            key=self._key(said, dialect, path, call, dialect.canonical(call)) if shared else None,
        )

    def _work_out(self, said: Directives, target: str, body: bytes, caller: str | None) -> Asked:
        dialect, kind = said.dialect, said.kind
        assert dialect is not None  # noqa: S101 - only model calls are read
        call = decode_object(body)
        if call is None:
            return _glance(said, target, body)
        canon = dialect.canonical(call)
        info = dialect.describe(kind, said.path, call, canon)
        trimmed: dict[str, int] = {}
        if self._trims:
            shorter = trim(kind, dialect.name, call, self._policy.prompts.of(said.step, info.template_hash))
            if shorter.changed:
                call, trimmed = shorter.call, shorter.what
                body, canon = msgspec.json.encode(call), dialect.canonical(call)
                info = _after(info, dialect.describe(kind, said.path, call, canon))
        fingerprint = f"prompt:{info.template_hash}"
        group, path = None, said.path
        if not self._rules.is_empty:
            choice = self._rules.choose(
                info.model, step=said.step, prompt=fingerprint, input_tokens=info.input_tokens, caller=caller
            )
            group = choice.group
            if choice.model is not None and choice.model != info.model:
                target, body = dialect.with_model(target, body, choice.model)
                call, path = decode_object(body) or call, target.partition("?")[0]
                canon = dialect.canonical(call)
                info = _after(info, dialect.describe(kind, path, call, canon))
        return Asked(
            dialect=dialect,
            info=msgspec.structs.replace(info, texts=[], system_text=""),  # long, and not needed to pass a call on
            target=target,
            body=body,
            tenant=said.tenant,
            key=self._key(said, dialect, path, call, canon) if self._shares and not info.stateful else None,
            attributes=_attributes(info),
            fingerprint=fingerprint,
            group=group,
            trimmed=trimmed,
            prefix=self._prefix(said, dialect, call, info),
        )

    def _key(self, said: Directives, dialect: Dialect, path: str, call: dict[str, Any], canon: bytes) -> bytes:
        return call_key(said.tenant, said.key_part, dialect, path, call, canon, mode=self._policy.cache.key)

    def _prefix(self, said: Directives, dialect: Dialect, call: dict[str, Any], info: CallInfo) -> PromptPrefix | None:
        if self._watch is None or said.kind != LLM or info.template_hash is None:
            return None
        template, model = info.template_hash, info.model
        return self._watch.read(dialect.name, call, template=template, model=model, tenant=said.tenant)


def _glance(said: Directives, target: str, body: bytes, caller: Caller | None = None) -> Asked:
    """The call as far as passing it on and pricing it needs: its model, and whether it streams. About 2 us a KB.

    Its length stands for its tokens, whoever asks.
    """
    dialect, path = said.dialect, said.path
    assert dialect is not None  # noqa: S101 - only model calls are read
    try:
        seen = _decode_glance(body)
    except DECODING:
        info = CallInfo(kind=said.kind)
    else:
        fields = {"model": seen.model, "stream": seen.stream}
        info = CallInfo(
            kind=said.kind,
            model=dialect.model_of(path, fields),
            stream=dialect.is_stream(path, fields),
            user_tokens=len(body) // BYTES_PER_TOKEN,
        )
    return Asked(dialect=dialect, info=info, target=target, body=body, tenant=said.tenant)


def _after(before: CallInfo, now: CallInfo) -> CallInfo:
    """The changed call, under the template it was written by: rules and reports know it by that."""
    return msgspec.structs.replace(now, template_hash=before.template_hash)


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
