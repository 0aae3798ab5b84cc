"""Messages: what clients send, parsed into drafts, and what an accepted message holds.

No I/O here. Each error names the wrong field by its path in the request, and says what is allowed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from chalicelib.clock import EpochMs
from chalicelib.errors import BadRequest
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.names import NAME_LIMITS, is_name
from chalicelib.protocol.ulid import Stamp

MAX_MESSAGES = 100
MAX_NAMES = 100  # in an audience, and in each of its lists of exceptions
MAX_TYPE_CHARACTERS = 128
DEFAULT_TYPE = "message"
MESSAGE_FIELDS = ("to", "type", "data", "encrypt", "store")


class Draft(NamedTuple):
    """A parsed message that has no id, sender or time yet.

    `data` is any JSON value. `stored` says whether the history may keep the message.
    """

    audience: Audience
    type: str
    data: object
    encrypted: bool = False
    stored: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An accepted message: a draft with an id, a sender and a time."""

    id: str
    sender: str
    timestamp: EpochMs
    audience: Audience
    type: str
    data: object
    encrypted: bool = False
    stored: bool = True

    def to_frame_entry(self) -> dict[str, object]:
        """Return the message as its recipients see it, before encryption."""
        return {
            "id": self.id,
            "type": self.type,
            "from": self.sender,
            "timestamp": self.timestamp,
            "data": self.data,
        }

    def to_dict(self) -> dict[str, object]:
        """Return the message as the queue's content and the history store it.

        `stored` is left out where it is true, as it is of every message in the history.
        """
        audience = self.audience
        return {
            **self.to_frame_entry(),
            "kind": audience.kind,
            "names": audience.names,
            "exceptUsers": sorted(audience.except_users),
            "exceptConnections": sorted(audience.except_connections),
            "encrypted": self.encrypted,
            **({} if self.stored else {"stored": False}),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Message":
        """Return the message that `to_dict` was called on."""
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
            stored=fields.get("stored", True),
        )


def accept(drafts: Sequence[Draft], *, sender: str, stamp: Stamp) -> list[Message]:
    """Turn the drafts of one request into messages: the stamp gives each an id and the time."""
    return [
        Message(
            id=message_id,
            sender=sender,
            timestamp=stamp.now,
            audience=draft.audience,
            type=draft.type,
            data=draft.data,
            encrypted=draft.encrypted,
            stored=draft.stored,
        )
        for draft, message_id in zip(drafts, stamp.ids(), strict=False)
    ]


def parse_messages(body: object, *, may_encrypt: bool) -> list[Draft]:
    """Parse one message, or `{"messages": [1..100 messages]}`.

    Args:
        body: The JSON value of a request.
        may_encrypt: Whether there is a key for messages that ask for encryption.

    Raises:
        BadRequest: Names the field that is wrong.
    """
    fields = _object("", body)
    if "messages" not in fields:
        return [parse_message(fields, may_encrypt=may_encrypt)]
    _require_known("", fields, ("messages",))
    entries = fields["messages"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_MESSAGES:
        raise BadRequest(f"messages must be a list of 1 to {MAX_MESSAGES} messages")
    return [
        parse_message(entry, may_encrypt=may_encrypt, path=f"messages[{index}]")
        for index, entry in enumerate(entries)
    ]


def parse_message(body: object, *, may_encrypt: bool, path: str = "") -> Draft:
    """Parse the message at `path` of a request. For `may_encrypt` see `parse_messages`.

    Raises BadRequest, which names the field that is wrong.
    """
    fields = _object(path, body)
    _require_known(path, fields, MESSAGE_FIELDS)
    for required in ("to", "data"):
        if required not in fields:
            raise BadRequest(f"{_join(path, required)} is missing")
    encrypted = _flag(path, "encrypt", fields, default=False)
    stored = _flag(path, "store", fields, default=True)
    if encrypted and not may_encrypt:
        raise BadRequest(f"{_join(path, 'encrypt')} must be false: no encryption key is configured")
    return Draft(
        audience=_parse_audience(_join(path, "to"), fields["to"]),
        type=_parse_type(_join(path, "type"), fields.get("type", DEFAULT_TYPE)),
        data=fields["data"],
        encrypted=encrypted,
        stored=stored,
    )


def _parse_audience(path: str, value: object) -> Audience:
    to = _object(path, value)
    kinds = [kind for kind in AudienceKind if kind in to]
    _require_known(path, to, (*AudienceKind, "exceptUsers", "exceptConnections"))
    if len(kinds) != 1:
        raise BadRequest(f"{path} must have exactly one of {', '.join(AudienceKind)}")
    kind = kinds[0]
    if kind is AudienceKind.ALL:
        if to["all"] is not True:
            raise BadRequest(f"{path}.all must be true")
        names: list[str] = []
    else:
        names = _parse_names(f"{path}.{kind}", to[kind], at_least=1)
    return Audience(
        kind=kind,
        names=tuple(dict.fromkeys(names)),
        except_users=frozenset(_parse_names(f"{path}.exceptUsers", to.get("exceptUsers", []))),
        except_connections=frozenset(
            _parse_names(f"{path}.exceptConnections", to.get("exceptConnections", []))
        ),
    )


def _parse_names(path: str, value: object, *, at_least: int = 0) -> list[str]:
    if not isinstance(value, list) or not at_least <= len(value) <= MAX_NAMES:
        length = f"{at_least} to" if at_least else "at most"
        raise BadRequest(f"{path} must be a list of {length} {MAX_NAMES} strings")
    return [parse_name(f"{path}[{index}]", name) for index, name in enumerate(value)]


def parse_name(path: str, value: object) -> str:
    """Return `value` if it can be the name of a user or a group, or the id of a connection.

    Raises BadRequest, which names `path`.
    """
    if not isinstance(value, str) or not is_name(value):
        raise BadRequest(f"{path} must be a string of {NAME_LIMITS}")
    return parse_text(path, value)


def _parse_type(path: str, value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TYPE_CHARACTERS:
        raise BadRequest(f"{path} must be a string of 1 to {MAX_TYPE_CHARACTERS} characters")
    return parse_text(path, value)


def parse_text(path: str, value: str) -> str:
    """Return `value` if UTF-8 can encode it. Raises BadRequest, which names `path`."""
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRequest(f"{path} contains a lone surrogate, which UTF-8 can't encode")
    return value


def _flag(path: str, name: str, fields: dict[str, Any], *, default: bool) -> bool:
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{_join(path, name)} must be true or false")
    return value


def _object(path: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{path or 'the body'} must be an object")
    return value


def _require_known(path: str, fields: Iterable[str], known: Sequence[str]) -> None:
    for name in fields:
        if name not in known:
            raise BadRequest(
                f"{_join(path, name)} is not a known field; allowed: {', '.join(known)}"
            )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
