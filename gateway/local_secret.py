"""The random secret of each checkout, which signs tokens for local use."""

import contextlib
import secrets
from pathlib import Path

from gateway.machine import private_files

PREFIX = "local-"
"""The start of a secret that Herald refuses on Lambda, as `chalicelib.settings` has it."""
RANDOM_BYTES = 32
MIN_CHARACTERS = len(PREFIX) + 43  # 32 bytes in base64


class BrokenSecret(ValueError):
    """The file of the secret is damaged or can't be used. The text says what to do."""


def local_secret(path: Path) -> str:
    """Return the secret in the file `path`, which the first process to call this creates.

    Raises BrokenSecret.
    """
    try:
        if not path.exists():
            with contextlib.suppress(FileExistsError):
                private_files.create(path, PREFIX + secrets.token_urlsafe(RANDOM_BYTES))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        secret = path.read_text().strip()
    except UnicodeDecodeError:
        secret = ""
    except OSError as error:
        raise BrokenSecret(
            f"{path} can't be used: {error.strerror}. It holds the local signing secret."
            " Change its owner to yourself, or delete it; the next command makes a new one."
        ) from None
    if not secret.startswith(PREFIX) or len(secret) < MIN_CHARACTERS:
        raise BrokenSecret(
            f"{path} doesn't hold a local signing secret. Delete it; the next command makes a new"
            " one."
        )
    return secret
