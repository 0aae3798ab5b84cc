"""Past memberships: since when users have been in groups, across their connections.

A returning user was a member of a group for as long as any of their connections was. Open
connections say so in their items. A connection that ends records its groups, and a connection that
leaves a group records that. Both records are in the history table, after the messages in the user's
stream (see `schema`), and last as long as the history. Leaving a group ends the memberships that
were recorded before.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs, epoch_ms
from chalicelib.store.dynamodb import Store
from chalicelib.store.expressions import Action, number, put
from chalicelib.store.items import Recipient, joined_at
from chalicelib.store.schema import (
    AFTER_MESSAGES,
    Item,
    ended_position,
    history_expires_at,
    left_position,
    user_stream,
)

Joined = Mapping[str, EpochMs]
"""Groups, each with the time at which it was joined."""


class Memberships:
    """Users' memberships of the last `seconds`."""

    def __init__(self, store: Store, *, seconds: int) -> None:
        """With 0 `seconds`, nothing is recorded."""
        self._store = store
        self._seconds = seconds

    def on_end(
        self, recipient: Recipient, joined: Mapping[str, EpochMs], now: EpochMs
    ) -> list[Action]:
        """Return the actions to record a connection's end.

        `joined` is when it joined each of its groups.
        """
        if not joined:
            return []
        groups = {"M": {group: number(since) for group, since in joined.items()}}
        return self._record(recipient, ended_position(recipient.connection_id), groups, now)

    def on_leave(self, recipient: Recipient, groups: Collection[str], now: EpochMs) -> list[Action]:
        """Return the actions to record that a connection leaves groups."""
        if not groups:
            return []
        position = left_position(now, recipient.connection_id)
        return self._record(recipient, position, {"SS": sorted(groups)}, now)

    def of_open(self, connection_ids: Sequence[str]) -> list[Joined]:
        """Return when each of these connections joined its groups, unless it has ended.

        To be read before the past memberships: a connection that ends in between is in both.
        Raises Unavailable.
        """
        pages = self._store.batch_get(
            self._store.tables.connections, "connectionId", connection_ids
        )
        return [joined_at(item) for page in pages for item in page]

    def records(self, principal: Principal) -> list[Item]:
        """Return the records of a user's past memberships. Raises Unavailable.

        The last page of the user's messages has them, too.
        """
        stream = user_stream(principal.tenant, principal.user_id)
        pages = self._store.query(
            self._store.tables.history,
            KeyConditionExpression="#stream = :stream AND #position >= :position",
            ExpressionAttributeNames={"#stream": "stream", "#position": "position"},
            ExpressionAttributeValues={
                ":stream": {"S": stream},
                ":position": {"S": AFTER_MESSAGES},
            },
            ConsistentRead=True,
        )
        return [item for page in pages for item in page.items]

    def _record(
        self, recipient: Recipient, position: str, groups: Item, now: EpochMs
    ) -> list[Action]:
        if not self._seconds:
            return []
        item = {
            "stream": {"S": user_stream(recipient.tenant, recipient.user_id)},
            "position": {"S": position},
            "at": number(now),
            "groups": groups,
            "expiresAt": number(history_expires_at(now, self._seconds)),
        }
        return [put(self._store.tables.history, item)]


def joined_since(
    principal: Principal, of_open: Iterable[Joined], records: Iterable[Item], now: EpochMs
) -> dict[str, EpochMs]:
    """Return when a user joined each group that they are in and their token still allows.

    `of_open` is when each of their open connections joined its groups; `records` are those of their
    past memberships.
    """
    joined: dict[str, EpochMs] = {}
    for times in (*of_open, *_of_ended(records, now)):
        for group, since in times.items():
            if principal.may_join(group):
                joined[group] = min(since, joined.get(group, since))
    return joined


def _of_ended(records: Iterable[Item], now: EpochMs) -> list[Joined]:
    valid = [
        record
        for record in records
        if int(record["expiresAt"]["N"]) * 1000 > now  # DynamoDB's TTL may take days
    ]
    last_left: dict[str, int] = {}
    for record in valid:
        for group in record["groups"].get("SS", ()):
            last_left[group] = max(int(record["at"]["N"]), last_left.get(group, 0))
    return [
        {
            group: epoch_ms(since["N"])
            for group, since in record["groups"].get("M", {}).items()
            if last_left.get(group, 0) < int(record["at"]["N"])
        }
        for record in valid
    ]
