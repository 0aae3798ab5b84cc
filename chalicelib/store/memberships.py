"""Since when users have been in groups, connection after connection.

Whoever comes back was in a group for as long as the connections that they had: those that are open
say so themselves, and those that ended of late have left a note, as has each group that was left.
In the history table, the stream `was/<user>` has

- `ended/<connection>`: the groups that a connection was in as it ended, and since when;
- `left/<time>/<connection>`: the groups that a connection left. What ended before counts no more.
"""

from collections.abc import Collection, Iterable, Mapping

from chalicelib.auth.principal import Principal
from chalicelib.store.dynamodb import Store
from chalicelib.store.expressions import Action, number, put
from chalicelib.store.items import Item, Recipient, joined_at


class Memberships:
    """What is known of users' groups in the last `seconds`. Times are in epoch milliseconds."""

    def __init__(self, store: Store, *, seconds: int) -> None:
        """With 0 `seconds`, nothing is noted."""
        self._store = store
        self._seconds = seconds

    def ended(self, recipient: Recipient, joined: Mapping[str, int], now: int) -> list[Action]:
        """The note of a connection that ends; `joined` says since when it was in its groups."""
        groups = {"M": {group: number(since) for group, since in joined.items()}}
        return self._note(recipient, "ended", now, groups) if joined else []

    def left(self, recipient: Recipient, groups: Collection[str], now: int) -> list[Action]:
        """The note of groups that a connection leaves."""
        return self._note(recipient, f"left/{now}", now, {"SS": sorted(groups)}) if groups else []

    def since(self, principal: Principal, connection_ids: list[str], now: int) -> dict[str, int]:
        """Since when a user has been in each group that their token still allows, as of `now`.

        `connection_ids` are their open connections. Raises Unavailable.
        """
        if not principal.groups:
            return {}
        joined: dict[str, int] = {}
        for times in (*self._of_open(connection_ids), *self._of_ended(principal.key, now)):
            for group, since in times.items():
                if principal.may_join(group):
                    joined[group] = min(since, joined.get(group, since))
        return joined

    def _of_open(self, connection_ids: list[str]) -> Iterable[Mapping[str, int]]:
        pages = self._store.batch_get(
            self._store.tables.connections, "connectionId", connection_ids
        )
        return [joined_at(item) for page in pages for item in page]

    def _of_ended(self, user_key: str, now: int) -> Iterable[Mapping[str, int]]:
        # DynamoDB's TTL may take days.
        notes = [one for one in self._notes(user_key) if int(one["expiresAt"]["N"]) * 1000 > now]
        left: dict[str, int] = {}
        for note in notes:
            for group in note["groups"].get("SS", ()):
                left[group] = max(int(note["at"]["N"]), left.get(group, 0))
        return [
            {
                group: int(since["N"])
                for group, since in note["groups"].get("M", {}).items()
                if left.get(group, 0) < int(note["at"]["N"])
            }
            for note in notes
        ]

    def _notes(self, user_key: str) -> list[Item]:
        pages = self._store.query(
            self._store.tables.history,
            KeyConditionExpression="#stream = :stream",
            ExpressionAttributeNames={"#stream": "stream"},
            ExpressionAttributeValues={":stream": {"S": _stream(user_key)}},
            ConsistentRead=True,
        )
        return [item for page in pages for item in page.items]

    def _note(self, recipient: Recipient, kind: str, now: int, groups: Item) -> list[Action]:
        if not self._seconds:
            return []
        item = {
            "stream": {"S": _stream(recipient.user_key)},
            "position": {"S": f"{kind}/{recipient.connection_id}"},
            "at": number(now),
            "groups": groups,
            "expiresAt": number(now // 1000 + self._seconds + 1),
        }
        return [put(self._store.tables.history, item)]


def _stream(user_key: str) -> str:
    return f"was/{user_key}"
