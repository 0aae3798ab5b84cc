"""The secret that signs tokens for local use: random, and one for each checkout."""

import contextlib
import secrets
from pathlib import Path

from gateway.machine import private_files

PREFIX = "local-"
"""Marks a secret that Herald refuses on Lambda; `chalicelib.settings` has it, too."""
RANDOM_BYTES = 32
MIN_CHARACTERS = len(PREFIX) + 43  # 32 bytes in base64


class BrokenSecret(ValueError):
    """The file of the secret is not as it was made; the text names the cure."""


def local_secret(path: Path) -> str:
    """Return the secret that `path` holds; the first call of all processes makes it.

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
            f"{path} can't be used: {error.strerror}. It holds the local signing secret: make it"
            " yours, or delete it, and the next command makes a new one"
        ) from None
    if not secret.startswith(PREFIX) or len(secret) < MIN_CHARACTERS:
        raise BrokenSecret(
            f"{path} holds no local signing secret: delete it, and the next command makes a new one"
        )
    return secret
