"""Keys from an identity provider and from Secrets Manager, through the whole gateway."""

from collections.abc import Callable, Iterator

import httpx
import pytest

from gateway.aws.emulator import client
from tests.support.clients import EVERY_SCOPE, SECRET, Client, token
from tests.support.jwts import CLAIMS, by_hand
from tests.support.key_server import ALGORITHMS, KeyPair, KeyServer, key_server

Start = Callable[..., Client]
ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:herald-jwt"


@pytest.fixture
def provider() -> Iterator[KeyServer]:
    with key_server() as server:
        yield server


def users(herald: Client, bearer: str) -> httpx.Response:
    return herald.http.get("/users/alice", headers={"Authorization": f"Bearer {bearer}"})


def test_a_providers_tokens_are_accepted_while_their_keys_are_published(
    herald_with: Start, provider: KeyServer
) -> None:
    pairs = [KeyPair.new(algorithm, algorithm) for algorithm in ALGORITHMS]
    provider.publish(*pairs)
    # One execution environment only: a second one would start without the cached keys.
    herald = herald_with(
        HERALD_JWT_SECRET=" ", HERALD_JWKS_URL=provider.url, GATEWAY_CONCURRENCY="1"
    )
    for pair in pairs:
        good = pair.token(scope=EVERY_SCOPE)
        socket = herald.open(subprotocols=["herald.v1", f"bearer.{good}"])
        assert socket.ask({"action": "refresh", "token": pair.token(scope="ws:connect")})[
            "type"
        ] == ("refreshed")
        assert users(herald, good).status_code == 200
        assert users(herald, pair.token(exp=1)).status_code == 401
        confused = by_hand({"alg": "HS256", "kid": pair.kid}, CLAIMS, str(pair.jwk()).encode())
        assert users(herald, confused).json() == {"message": "Unauthorized"}
    assert users(herald, token()).status_code == 401  # no secret is set

    new = KeyPair.new("ES256", "new")
    provider.publish(new)
    assert users(herald, new.token()).status_code == 200

    provider.status = 503
    assert users(herald, new.token()).status_code == 200
    assert users(herald, KeyPair.new("ES256", "newer").token()).status_code == 401
    assert herald.refusal(f"?token={pairs[0].token()}") == 401  # its key is no longer published


def test_an_unreachable_provider_causes_500_and_not_401(
    herald_with: Start, provider: KeyServer
) -> None:
    """Nobody is admitted, and nobody is told that a token is invalid."""
    provider.status = 503
    pair = KeyPair.new("ES256", "a")
    herald = herald_with(HERALD_JWKS_URL=provider.url)
    assert users(herald, pair.token()).status_code == 500
    assert herald.refusal(f"?token={pair.token()}") == 500
    socket = herald.connect("alice")  # the secret is still good
    answer = socket.ask({"action": "refresh", "token": pair.token(), "ref": "r"})
    assert (answer["code"], answer["ref"]) == ("unavailable", "r")
    provider.status = 200
    provider.publish(pair)
    assert herald.refusal(f"?token={token(key='k' * 32)}") == 401


def test_a_secret_in_secrets_manager_can_be_rotated(herald_with: Start) -> None:
    herald = herald_with(HERALD_JWT_SECRET=" ", HERALD_JWT_SECRET_ARN=ARN)
    secrets = client("secretsmanager", herald.running.aws)
    assert users(herald, token()).status_code == 500
    secrets.create_secret(Name="herald-jwt", SecretString=SECRET)
    assert users(herald, token()).status_code == 200
    herald.connect("alice")
    rotated = "the-secret-after-its-rotation-is-another"
    secrets.put_secret_value(SecretId="herald-jwt", SecretString=rotated)
    assert users(herald, token(key=rotated)).status_code == 200
    assert users(herald, token(key="never-a-secret-of-herald-at-all-before")).status_code == 401
    secrets.close()
