"""A history of large messages, made when they are read: nothing of it is in memory before.

It stands in for DynamoDB's client, since an emulator in this process would be measured as well.
"""

import random
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from chalicelib.clock import EpochMs
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.messages import Message
from chalicelib.protocol.strict_json import encode
from chalicelib.protocol.ulid import Stamp
from chalicelib.store.delayed import delayed_item
from chalicelib.store.schema import Item

PAGE_BYTES = 1024 * 1024  # of DynamoDB

Make = Callable[[], Item]


def incompressible(length: int, seed: str) -> str:
    """Return text of hexadecimal digits, of which half the size remains when compressed."""
    return random.Random(seed).randbytes(length // 2).hex()


def ids(count: int, first: EpochMs, step_ms: int = 1) -> list[str]:
    """Return ids of consecutive moments."""
    return [next(Stamp(EpochMs(first + number * step_ms), 0).ids()) for number in range(count)]


def message(message_id: str, at: EpochMs, kind: AudienceKind, names: tuple[str, ...]) -> Message:
    return Message(
        id=message_id,
        sender="server",
        timestamp=at,
        audience=Audience(kind, names),
        type="message",
        data="",
    )


class LargeHistory:
    """A client whose history table has what was added."""

    def __init__(self, data: Callable[[str], str]) -> None:
        """Take `data`, which returns the data of the message with an id."""
        self._data = data
        self._positions: dict[str, list[str]] = {}
        self._makers: dict[tuple[str, str], Make] = {}
        self.read_bytes = 0

    def add(self, stream: str, message_ids: Sequence[str], turn: str) -> None:
        """Add messages to a stream, in the order of their ids."""
        for message_id in message_ids:
            self._add(stream, message_id, partial(self._item, message_id, turn))

    def add_delayed(self, delayed: Message, tenant: str | None, noted_at: EpochMs) -> None:
        """Add the reference to a delayed message."""
        item = delayed_item(delayed, tenant, noted_at, len(self._data(delayed.id)))
        self._add(item["stream"]["S"], item["position"]["S"], lambda: dict(item))

    def query(self, **parameters: Any) -> Any:
        values = parameters["ExpressionAttributeValues"]
        stream, position = values[":stream"]["S"], values[":position"]["S"]
        positions = self._positions.get(stream, [])
        start = bisect_left(positions, position)
        if "ExclusiveStartKey" in parameters:
            start = bisect_right(positions, parameters["ExclusiveStartKey"]["position"]["S"])
        page: list[Item] = []
        size = 0
        for position in positions[start : start + parameters.get("Limit", len(positions))]:
            page.append(self._made(stream, position))
            size += len(page[-1].get("packed", {"B": b""})["B"]) + 200
            if size >= PAGE_BYTES:
                break
        self.read_bytes += size
        answer: dict[str, Any] = {"Items": page}
        if start + len(page) < len(positions):
            answer["LastEvaluatedKey"] = {"stream": {"S": stream}, "position": page[-1]["position"]}
        return answer

    def batch_get_item(self, RequestItems: Any) -> Any:  # noqa: N803
        [(table, request)] = RequestItems.items()
        keys = [(key["stream"]["S"], key["position"]["S"]) for key in request["Keys"]]
        found = [self._made(*key) for key in keys if key in self._makers]
        self.read_bytes += sum(len(item["packed"]["B"]) + 200 for item in found)
        return {"Responses": {table: found}, "UnprocessedKeys": {}}

    def _add(self, stream: str, position: str, make: Make) -> None:
        self._positions.setdefault(stream, []).append(position)
        self._makers[stream, position] = make

    def _made(self, stream: str, position: str) -> Item:
        return {**self._makers[stream, position](), "position": {"S": position}}

    def _item(self, message_id: str, turn: str) -> Item:
        text = encode({**_FIELDS, "id": message_id, "data": self._data(message_id)})
        return {"turn": {"S": turn}, "packed": {"B": zlib.compress(text, 1)}}


_FIELDS: dict[str, Any] = {"type": "message", "from": "server", "timestamp": 1}
