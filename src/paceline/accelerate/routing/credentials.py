"""A provider's credential, from a variable of the environment or a file. A file can be rotated while it is in use."""

from collections.abc import Mapping
from pathlib import Path

from paceline.errors import ConfigError


def read_credential(what: str, environ: Mapping[str, str], *, key_env: str | None, key_file: str | None) -> str | None:
    """The credential of `what`, read now; None: neither is named. ConfigError, without the secret: it is not there."""
    if key_file is not None:
        where = f"the file {key_file}"
        try:
            secret = Path(key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            msg = f"{what} takes its credential from {where}, which cannot be read: {reason}"
            raise ConfigError(msg) from error
        missing = "is empty"
    elif key_env is not None:
        where, missing = f"the environment variable {key_env}", "is not set"
        secret = environ.get(key_env, "").strip()
    else:
        return None
    if not secret:
        msg = f"{what} takes its credential from {where}, which {missing}"
        raise ConfigError(msg)
    if not (secret.isascii() and secret.isprintable()):
        msg = f"{what} takes its credential from {where}, which has characters that no header may hold"
        raise ConfigError(msg)
    return secret
