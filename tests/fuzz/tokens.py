"""Fuzzes tokens: any octets as a token, and any octets as the claims of a correctly signed token.

The result must be a refusal, or a principal that survives the authorizer's context.
"""

import base64
import hashlib
import hmac
import sys

import atheris

with atheris.instrument_imports(include=["chalicelib"]):
    from chalicelib.auth.bearer import bearer_token, handshake_token
    from chalicelib.auth.principal import Principal
    from chalicelib.auth.verifier import TokenVerifier
    from chalicelib.errors import Unauthorized
    from chalicelib.settings import Settings

SECRET = "x" * 32
VERIFIER = TokenVerifier(Settings.from_environ({"HERALD_JWT_SECRET": SECRET}))
HEADER = base64.urlsafe_b64encode(b'{"alg":"HS256"}').rstrip(b"=")


def signed(claims: bytes) -> str:
    """Return a token with these claims and a correct signature."""
    content = HEADER + b"." + base64.urlsafe_b64encode(claims).rstrip(b"=")
    digest = hmac.digest(SECRET.encode(), content, hashlib.sha256)
    return (content + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")).decode()


def try_one(data: bytes) -> None:
    """Try one input. Raises whatever isn't a refusal."""
    for text in (data.decode("utf-8", "replace"), data.decode("latin-1")):
        for find in (
            lambda text=text: bearer_token(text),
            lambda text=text: handshake_token({"authorization": text}, [text], {"token": text}),
            lambda text=text: VERIFIER.verify(text),
        ):
            try:
                find()
            except Unauthorized as refused:
                assert refused.detail
    try:
        principal = VERIFIER.verify(signed(data))
    except Unauthorized as refused:
        assert refused.detail
        return
    assert Principal.from_context(principal.to_context()) == principal


if __name__ == "__main__":
    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()
