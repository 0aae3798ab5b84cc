"""Tokens that are signed with a shared secret."""

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from gateway.configuration import ConfigurationError
from gateway.tokens import token
from tests.support.clients import SECRET


def test_a_token_has_the_configured_issuer_and_audience_and_further_claims() -> None:
    variables = {
        "HERALD_JWT_SECRET": SECRET,
        "HERALD_JWT_ISSUER": "me",
        "HERALD_JWT_AUDIENCE": "herald",
    }
    signed = token(variables, "alice", "ws:connect", seconds=60, tenant="acme")
    claims = jwt.decode(signed, OctKey.import_key(SECRET)).claims
    assert claims.pop("exp") - claims.pop("iat") == 60
    assert claims == {
        "sub": "alice",
        "scope": "ws:connect",
        "iss": "me",
        "aud": "herald",
        "tenant": "acme",
    }


@pytest.mark.parametrize(
    ("secret", "reason"),
    [("", "HERALD_JWT_SECRET is empty"), ("short", "HERALD_JWT_SECRET can't sign a token")],
)
def test_a_missing_or_short_secret_cannot_sign(secret: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        token({"HERALD_JWT_SECRET": secret}, "alice")
