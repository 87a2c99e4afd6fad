"""A configuration in words, for whoever starts the gateway."""

import msgspec

from paceline.accelerate.limits import Limits
from paceline.accelerate.policy import RECOMMENDED
from paceline.gateway.config import BASE_URL_ENV, BASE_URL_PATH, DEFAULT_URLS, GatewayConfig, policy_of

_NAMES = {"openai": "OpenAI", "anthropic": "Anthropic", "gemini": "Gemini"}


def described(config: GatewayConfig) -> str:
    """What is on, a line each."""
    server = config.server
    lines = [("providers", _providers(config)), ("callers", _callers(config)), ("policy", _policy(config))]
    limits = policy_of(config).limits
    if not limits.is_off:
        lines.append(("limits", Limits(limits).describe().removeprefix("limits ")))
    if server.workers > 1:
        lines.append(("processes", f"{server.workers}, each with a memory cache of its own"))
    lines.append(("pages", "/metrics  /-/costs  /-/cache  /-/limits  /-/prompts  /-/health  /-/ready"))
    if server.access_log is not None:
        lines.append(("log", "standard output" if server.access_log == "-" else server.access_log))
    return "\n".join(f"  {name:<10} {text}" for name, text in lines)


def how_to_point_at(url: str) -> str:
    """What to set so that SDKs use the gateway."""
    return "\n".join(f"  {name}={url}{BASE_URL_PATH[provider]}" for provider, name in BASE_URL_ENV.items())


def _providers(config: GatewayConfig) -> str:
    urls = {name: config.url_of(name) for name in DEFAULT_URLS}
    sent = {name: provider.key_source for name, provider in config.providers.items() if provider.key_source}
    if len(set(urls.values())) == 1 and not sent:
        return f"{urls['openai']} for all dialects"
    return ", ".join(
        f"{_NAMES[name]} {url}{f' with {sent[name]}' if name in sent else ''}" for name, url in urls.items()
    )


def _callers(config: GatewayConfig) -> str:
    if not config.wants_keys:
        own = [_NAMES[name] for name, provider in config.providers.items() if provider.key_source is None]
        whose = "their own credentials go along" if len(own) == len(config.providers) else "no key is asked for"
        return f"anybody who reaches {config.server.host}; {whose}"
    names = ", ".join(key.name for key in config.keys[:5])
    more = f" and {len(config.keys) - 5} more" if len(config.keys) > 5 else ""
    without = [_NAMES[n] for n in DEFAULT_URLS if n not in config.providers or config.providers[n].key_source is None]
    gap = f"; no credential for {', '.join(without)}" if without else ""
    count = len(config.keys)
    return (
        f"{count} key{'s' if count > 1 else ''} ({names}{more}){gap}" if count else f"nobody: there is no key yet{gap}"
    )


def _policy(config: GatewayConfig) -> str:
    changed = ", ".join(_changes(config.policy))
    if config.policy == RECOMMENDED:
        return f"recommended: {changed}"
    return changed or "calls are passed on; nothing is cached, shared or limited"


def _changes(policy: msgspec.Struct) -> list[str]:
    """What differs from the defaults, like `cache (ttl_s=60)`."""
    changes = []
    standard = type(policy)()
    for name in policy.__struct_fields__:
        value = getattr(policy, name)
        if value == getattr(standard, name):
            continue
        if isinstance(value, msgspec.Struct):
            inner = [change for change in _changes(value) if change != "enabled"]
            changes.append(f"{name} ({', '.join(inner)})" if inner else name)
        elif value is True:
            changes.append(name)
        elif isinstance(value, (list, dict)):
            changes.append(f"{len(value)} {name}")
        else:
            changes.append(f"{name}={value}")
    return changes
