"""Encrypted messages, from the POST to a reader that fetches its keys."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from jwcrypto import jwe, jwk

from gateway.aws.emulator import client
from tests.support.clients import Client, token

OLD = {"kty": "oct", "kid": "old", "k": "b2xk" * 11}
NEW = {"kty": "oct", "kid": "new", "k": "bmV3" * 11}


def encrypting(herald_with: Callable[..., Client], *keys: Any) -> Client:
    return herald_with(HERALD_ENCRYPTION_KEYS=json.dumps({"keys": keys}))


def keys_of(herald: Client, user: str, **claims: Any) -> dict[str, jwk.JWK]:
    headers = {"Authorization": f"Bearer {token(user, scope='', **claims)}"}
    answer = herald.http.get("/keys", headers=headers)
    assert answer.headers["cache-control"] == "no-store"
    return {key["kid"]: jwk.JWK(**key) for key in answer.json()["keys"]}


def read(entry: Any, keys: dict[str, jwk.JWK]) -> Any:
    assert entry["encrypted"] is True
    sealed = jwe.JWE()
    sealed.deserialize(entry["data"])
    sealed.decrypt(keys[sealed.jose_header["kid"]])
    return json.loads(sealed.payload)


def test_a_reader_decrypts_their_own_messages_and_nobody_elses(
    herald_with: Callable[..., Client],
) -> None:
    herald = encrypting(herald_with, NEW, OLD)
    sockets = {user: [herald.connect(user), herald.connect(user)] for user in ("bob", "carol")}
    secret = {"text": "für dich", "nested": [1, None]}
    message = {"to": {"all": True}, "data": secret, "encrypt": True, "type": "chat"}
    answer = herald.post({"messages": [message, {"to": {"users": ["bob"]}, "data": "open"}]})
    assert [report["delivered"] for report in answer.json()["messages"]] == [4, 2]
    received: dict[str, set[str]] = {}
    for user, open_sockets in sockets.items():
        for socket in open_sockets:
            entry, *others = socket.receive()["messages"]
            assert (entry["type"], entry["from"]) == ("chat", "alice")
            assert read(entry, keys_of(herald, user)) == secret
            assert [(one["data"], "encrypted" in one) for one in others] == [("open", False)] * (
                user == "bob"
            )
            received.setdefault(user, set()).add(entry["data"])
    # A message is encrypted once for each user, and other users can't read it.
    assert {user: len(texts) for user, texts in received.items()} == {"bob": 1, "carol": 1}
    taken = {"encrypted": True, "data": received["bob"].pop()}
    for stranger in (keys_of(herald, "carol"), keys_of(herald, "bob", tenant="other")):
        with pytest.raises(jwe.InvalidJWEData):
            read(taken, stranger)


def test_a_message_sent_over_a_websocket_is_readable_after_a_key_rotation(
    herald_with: Callable[..., Client],
) -> None:
    before = encrypting(herald_with, OLD)
    socket = before.connect("bob")
    send = {"action": "send", "to": {"users": ["bob"]}, "data": 1, "encrypt": True}
    frames = [socket.ask(send), socket.receive()]
    [entry] = next(frame["messages"] for frame in frames if frame["type"] == "messages")
    after = encrypting(herald_with, NEW, OLD)
    assert list(keys_of(after, "bob")) == ["new", "old"]
    assert read(entry, keys_of(after, "bob")) == 1


def test_encryption_is_refused_when_no_key_is_configured(herald: Client) -> None:
    assert keys_of(herald, "bob") == {}
    answer = herald.post({"to": {"users": ["bob"]}, "data": 1, "encrypt": True})
    assert answer.status_code == 400
    assert answer.json()["detail"] == "encrypt must be false: no encryption key is configured"


def test_fetching_keys_needs_a_token(herald_with: Callable[..., Client]) -> None:
    herald = encrypting(herald_with, NEW)
    assert herald.http.get("/keys").status_code == 401


SECRET_FOR_BOB = {"to": {"users": ["bob"]}, "data": "secret", "encrypt": True}
ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:herald-keys"


def test_keys_in_secrets_manager_encrypt_messages(herald_with: Callable[..., Client]) -> None:
    herald = herald_with(HERALD_ENCRYPTION_KEYS_ARN=ARN)
    secrets = client("secretsmanager", herald.running.aws)
    secrets.create_secret(Name="herald-keys", SecretString=json.dumps({"keys": [NEW, OLD]}))
    secrets.close()
    socket = herald.connect("bob")
    assert herald.post(SECRET_FOR_BOB).json()["messages"][0]["delivered"] == 1
    [entry] = socket.receive()["messages"]
    keys = keys_of(herald, "bob")
    assert read(entry, keys) == "secret"
    assert list(keys) == ["new", "old"]


def test_unreadable_keys_fail_encrypted_messages_alone(
    herald_with: Callable[..., Client],
) -> None:
    herald = herald_with(HERALD_ENCRYPTION_KEYS_ARN=ARN)
    socket = herald.connect("bob")
    refused = herald.post(SECRET_FOR_BOB)
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert int(refused.headers["Retry-After"]) > 0
    answer = socket.ask({"action": "send", "ref": "r", **SECRET_FOR_BOB})
    assert (answer["code"], answer["ref"]) == ("unavailable", "r")
    headers = {"Authorization": f"Bearer {token('bob', scope='')}"}
    assert herald.http.get("/keys", headers=headers).status_code == 503
    assert herald.report({"users": ["bob"]}, "open")["delivered"] == 1
    assert socket.messages() == ["open"]
