"""What a message is. Parsing, and its errors.

No I/O here. Every error names the field that was wrong, by its path in the request.
"""

from dataclasses import dataclass
from typing import Any

from chalicelib.errors import BadRequest
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.ulid import Stamp

MAX_MESSAGES = 100
MAX_NAMES = 100  # in an audience, and in each kind of exception
MAX_NAME_CHARACTERS = 128
MAX_TYPE_CHARACTERS = 128
DEFAULT_TYPE = "message"


@dataclass(frozen=True, slots=True)
class Message:
    """One accepted message. `timestamp` is in epoch milliseconds, `data` any JSON value; `stored`
    is whether it may be kept in the history."""

    id: str
    sender: str
    timestamp: int
    audience: Audience
    type: str
    data: object
    encrypted: bool = False
    stored: bool = True

    def to_frame_entry(self) -> dict[str, object]:
        """The message as its recipients see it, before it is encrypted."""
        return {
            "id": self.id,
            "type": self.type,
            "from": self.sender,
            "timestamp": self.timestamp,
            "data": self.data,
        }

    def to_dict(self) -> dict[str, object]:
        """The message as the queue and the history keep it."""
        audience = self.audience
        return {
            **self.to_frame_entry(),
            "kind": audience.kind,
            "names": audience.names,
            "exceptUsers": sorted(audience.except_users),
            "exceptConnections": sorted(audience.except_connections),
            "encrypted": self.encrypted,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Message":
        """The inverse of `to_dict`."""
        return cls(
            id=fields["id"],
            sender=fields["from"],
            timestamp=fields["timestamp"],
            audience=Audience(
                AudienceKind(fields["kind"]),
                tuple(fields["names"]),
                frozenset(fields["exceptUsers"]),
                frozenset(fields["exceptConnections"]),
            ),
            type=fields["type"],
            data=fields["data"],
            encrypted=fields["encrypted"],
        )


class MessageParser:
    """Turns the body of one request into messages, all accepted at one time.

    `may_encrypt` says whether there is a key for messages that ask for it.
    """

    def __init__(self, sender: str, stamp: Stamp, *, may_encrypt: bool) -> None:
        self._sender = sender
        self._now = stamp.now
        self._ids = stamp.ids()
        self._may_encrypt = may_encrypt

    def batch(self, body: object) -> list[Message]:
        """One message, or `{"messages": [1..100]}`. Raises BadRequest, naming the field."""
        body = _object("", body)
        if "messages" not in body:
            return [self.one(body)]
        _known("", body, {"messages"})
        entries = body["messages"]
        if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_MESSAGES:
            raise BadRequest(f"messages must be a list of 1 to {MAX_MESSAGES} messages")
        return [self.one(entry, f"messages[{index}]") for index, entry in enumerate(entries)]

    def one(self, body: object, path: str = "") -> Message:
        """One message at `path` of the request. Raises BadRequest, naming the field."""
        fields = _object(path, body)
        _known(path, fields, {"to", "type", "data", "encrypt", "store"})
        for required in ("to", "data"):
            if required not in fields:
                raise BadRequest(f"{_join(path, required)} is missing")
        for flag in ("encrypt", "store"):
            if not isinstance(fields.get(flag, False), bool):
                raise BadRequest(f"{_join(path, flag)} must be true or false")
        encrypted = fields.get("encrypt", False)
        if encrypted and not self._may_encrypt:
            raise BadRequest(f"{_join(path, 'encrypt')}: encryption is not available")
        kind = fields.get("type", DEFAULT_TYPE)
        if not isinstance(kind, str) or not 1 <= len(kind) <= MAX_TYPE_CHARACTERS:
            raise BadRequest(
                f"{_join(path, 'type')} must be a string of 1 to {MAX_TYPE_CHARACTERS} characters"
            )
        return Message(
            id=next(self._ids),
            sender=self._sender,
            timestamp=self._now,
            audience=_audience(_join(path, "to"), fields["to"]),
            type=parse_text(_join(path, "type"), kind),
            data=fields["data"],
            encrypted=encrypted,
            stored=fields.get("store", True),
        )


def _audience(path: str, value: object) -> Audience:
    to = _object(path, value)
    kinds = [kind for kind in AudienceKind if kind in to]
    _known(path, to, {*AudienceKind, "exceptUsers", "exceptConnections"})
    if len(kinds) != 1:
        raise BadRequest(f"{path} must have exactly one of users, groups, connections, all")
    kind = kinds[0]
    if kind is AudienceKind.ALL:
        if to["all"] is not True:
            raise BadRequest(f"{path}.all must be true")
        names: list[str] = []
    else:
        names = _names(f"{path}.{kind}", to[kind], at_least=1)
    return Audience(
        kind=kind,
        names=tuple(dict.fromkeys(names)),
        except_users=frozenset(_names(f"{path}.exceptUsers", to.get("exceptUsers", []))),
        except_connections=frozenset(
            _names(f"{path}.exceptConnections", to.get("exceptConnections", []))
        ),
    )


def _names(path: str, value: object, at_least: int = 0) -> list[str]:
    if not isinstance(value, list) or not at_least <= len(value) <= MAX_NAMES:
        raise BadRequest(f"{path} must be a list of {at_least} to {MAX_NAMES} names")
    return [parse_name(f"{path}[{index}]", name) for index, name in enumerate(value)]


def parse_name(path: str, value: object) -> str:
    """A name: of a user, a group, a connection. Raises BadRequest, naming `path`."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME_CHARACTERS:
        raise BadRequest(f"{path} must be a string of 1 to {MAX_NAME_CHARACTERS} characters")
    return parse_text(path, value)


def parse_text(path: str, value: str) -> str:
    """Text that UTF-8 can carry. Raises BadRequest, naming `path`."""
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRequest(f"{path} holds a lone surrogate, which UTF-8 can't carry")
    return value


def _object(path: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{path or 'the body'} must be an object")
    return value


def _known(path: str, fields: dict[str, Any], known: set[str]) -> None:
    for name in fields:
        if name not in known:
            raise BadRequest(f"{_join(path, name)} is not a known field")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
