"""Settings: every switch of the desk, read once from SUPPORT_* environment variables.

The defaults are the desk as it first went live. Each later step of its roadmap is a switch.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent.parent
DATA = HOME / "data"
EVERYTHING = 10_000  # more messages than a conversation can have


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One value a variable: `cache_entries` is SUPPORT_CACHE_ENTRIES. True is "1", false is "0" or empty."""

    state_dir: str = str(HOME / ".data")  # vector store and audit log
    time_scale: float = 1.0  # seconds of ours in a second of the provider's, where it is simulated faster

    strong_model: str = "gpt-4o"
    small_model: str = "gpt-4o"  # for intent and validation
    embedding_model: str = "text-embedding-3-small"

    collection: str = "handbook_v2"
    ready_checks: bool = False  # /ready looks whether the collection is there

    parallel: bool = False  # retrieval beside intent and tone
    intent_once: bool = False  # one classification a question
    validate_after: bool = False  # the audit follows the answer

    chunks: int = 5
    short_prompts: bool = False  # each step gets what it needs, not the whole policy
    history_messages: int = EVERYTHING
    limit_replies: bool = False  # max_tokens on every step

    async_calls: bool = False  # one event loop and one pooled client instead of a thread and a client a request
    stream: bool = False  # pass the answer on while it is written, to who asks for it

    cache_key: str = "raw"  # or "text": case, punctuation and white space ignored
    cache_entries: int = 256
    cache_ttl_s: float = 3600.0
    single_flight: bool = False  # the same question in flight is answered once
    reuse_steps: bool = False  # embeddings of questions and tone guidelines are kept
    redis: str = ""  # second level of the answer cache: "local" starts one, or a redis:// URL
    web_cache: bool = False  # static files with cache headers, everything gzipped

    @property
    def state(self) -> Path:
        """Folder of everything the desk writes."""
        return Path(self.state_dir)


def from_env(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process. Raises ValueError for a value of the wrong type."""
    given: dict[str, Any] = {}
    for field in fields(Settings):
        name = f"SUPPORT_{field.name.upper()}"
        raw = environ.get(name)
        if raw is None:
            continue
        kind = type(field.default)
        try:
            given[field.name] = raw not in ("", "0") if kind is bool else kind(raw)
        except ValueError:
            msg = f"{name} must be of type {kind.__name__}; got {raw!r}"
            raise ValueError(msg) from None
    return Settings(**given)
