"""Past memberships: since when users have been in groups, across their connections.

A returning user was a member of a group for as long as any of their connections was. Open
connections say so in their items. A connection that ends records its groups, and a connection that
leaves a group records that. Both records are in the history table, in the user's stream of past
memberships (see `schema`), and last as long as the history. Leaving a group ends the memberships
that were recorded before.
"""

from collections.abc import Collection, Iterable, Mapping

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs, epoch_ms
from chalicelib.store.dynamodb import Store
from chalicelib.store.expressions import Action, number, put
from chalicelib.store.items import Recipient, joined_at
from chalicelib.store.schema import (
    Item,
    ended_position,
    history_expires_at,
    left_position,
    past_memberships_stream,
)


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

    def joined_since(
        self, principal: Principal, connection_ids: list[str], now: EpochMs
    ) -> dict[str, EpochMs]:
        """Return when a user joined each group that they are in and their token still allows.

        `connection_ids` are their open connections. Raises Unavailable.
        """
        if not principal.groups:
            return {}
        joined: dict[str, EpochMs] = {}
        for times in (*self._of_open(connection_ids), *self._of_ended(principal.key, now)):
            for group, since in times.items():
                if principal.may_join(group):
                    joined[group] = min(since, joined.get(group, since))
        return joined

    def _of_open(self, connection_ids: list[str]) -> Iterable[Mapping[str, EpochMs]]:
        pages = self._store.batch_get(
            self._store.tables.connections, "connectionId", connection_ids
        )
        return [joined_at(item) for page in pages for item in page]

    def _of_ended(self, user_key: str, now: EpochMs) -> Iterable[Mapping[str, EpochMs]]:
        records = [
            record
            for record in self._records(user_key)
            if int(record["expiresAt"]["N"]) * 1000 > now  # DynamoDB's TTL may take days
        ]
        last_left: dict[str, int] = {}
        for record in records:
            for group in record["groups"].get("SS", ()):
                last_left[group] = max(int(record["at"]["N"]), last_left.get(group, 0))
        return [
            {
                group: epoch_ms(since["N"])
                for group, since in record["groups"].get("M", {}).items()
                if last_left.get(group, 0) < int(record["at"]["N"])
            }
            for record in records
        ]

    def _records(self, user_key: str) -> list[Item]:
        pages = self._store.query(
            self._store.tables.history,
            KeyConditionExpression="#stream = :stream",
            ExpressionAttributeNames={"#stream": "stream"},
            ExpressionAttributeValues={":stream": {"S": past_memberships_stream(user_key)}},
            ConsistentRead=True,
        )
        return [item for page in pages for item in page.items]

    def _record(
        self, recipient: Recipient, position: str, groups: Item, now: EpochMs
    ) -> list[Action]:
        if not self._seconds:
            return []
        item = {
            "stream": {"S": past_memberships_stream(recipient.user_key)},
            "position": {"S": position},
            "at": number(now),
            "groups": groups,
            "expiresAt": number(history_expires_at(now, self._seconds)),
        }
        return [put(self._store.tables.history, item)]
