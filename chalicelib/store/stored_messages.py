"""Messages as the history stores them. No I/O.

A message is stored as the text that frames have of it, so that a resume passes it on without
parsing it. The text is encrypted or compressed, never both: the compressed size would leak the
content. Who is excepted from the audience stands beside it.
"""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from chalicelib.protocol.audience import Audience
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import Message
from chalicelib.protocol.strict_json import encode, parse_json
from chalicelib.store.schema import Item


class RequestNumber(NamedTuple):
    """The place of a request among those of its `writer`, an execution environment.

    A writer handles one request after the other, and counts them.
    """

    writer: str
    number: int

    def precedes(self, other: "RequestNumber") -> bool:
        """Return whether a message of this request with a lower id was certainly sent before one
        of the `other`.

        In one request it was: each connection gets its messages in order, and after a failure it
        gets no more.
        """
        return self.writer == other.writer and self.number <= other.number


class StoredMessage(NamedTuple):
    """A message of a stream, as it is stored.

    Attributes:
        turn: Its request; see `request`.
        content: The message's text, encrypted or else compressed.
        exceptions: Who is excepted from its audience, compressed; empty for nobody.
    """

    id: str
    turn: str
    content: bytes
    encrypted: bool
    exceptions: bytes

    @property
    def request(self) -> RequestNumber:
        """The request that it was sent in."""
        return request_number(self.turn)

    def excepts(self, user_id: str, connection_id: str) -> bool:
        """Return whether its audience excepts a connection or its user."""
        if not self.exceptions:
            return False
        excepted: Any = parse_json(zlib.decompress(self.exceptions).decode())
        return user_id in excepted["users"] or connection_id in excepted["connections"]

    def text(self, encryption: Encryption) -> bytes:
        """Return the text that frames have of the message, before encryption.

        Raises KeyError if it is encrypted and its master key has been removed.
        """
        return encryption.unseal(self.content) if self.encrypted else zlib.decompress(self.content)


def stored_item(message: Message, request: RequestNumber, encryption: Encryption) -> Item:
    """Return a message's item, which has no stream and no TTL yet."""
    text = encode(message.to_frame_entry())
    content = (
        {"sealed": {"B": encryption.seal(text)}}
        if message.encrypted
        else {"packed": {"B": zlib.compress(text)}}
    )
    return {
        "position": {"S": message.id},
        "turn": {"S": f"{request.writer}/{request.number}"},
        **content,
        **_exceptions(message.audience),
    }


def stored_message(item: Mapping[str, Any]) -> StoredMessage:
    """Return the message of an item."""
    encrypted = "sealed" in item
    return StoredMessage(
        item["position"]["S"],
        item["turn"]["S"],
        item["sealed" if encrypted else "packed"]["B"],
        encrypted,
        item["except"]["B"] if "except" in item else b"",
    )


def request_number(turn: str) -> RequestNumber:
    """Return the request that an item's `turn` names."""
    writer, _, number = turn.partition("/")
    return RequestNumber(writer, int(number))


def _exceptions(audience: Audience) -> Item:
    users, connections = audience.except_users, audience.except_connections
    if not users and not connections:
        return {}
    excepted = {"users": sorted(users), "connections": sorted(connections)}
    return {"except": {"B": zlib.compress(encode(excepted))}}
