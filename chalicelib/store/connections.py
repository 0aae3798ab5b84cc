"""The life of a connection: its states, and every transition between them.

| state | enters | leaves |
|---|---|---|
| active | `open`; `hear` (a message from the client); `revive` (a successful probe) | |
| stale | silence, unwritten (`Connection.status_at`); `mark_stale` (a delivery timed out) | \
`hear`, `revive` → active; `close` (a failed probe) |
| terminated | `close` (disconnect, gone, refused, expired token, evicted, closed by API) | |

Each transition is one transaction over the tables of `records`, so that a crash leaves all of it
or nothing. What a connection may become while it is active, `join`, `leave` and `refresh`, is too.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from chalicelib import aws_limits
from chalicelib.auth.principal import Principal, group_key
from chalicelib.errors import BadRequest, ConnectionGone, TooManyConnections, Unavailable
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Action, Clause, delete, number, put, update
from chalicelib.store.items import (
    JOINED_PREFIX,
    REACH_PREFIX,
    USER_SECONDS,
    Connection,
    Item,
    Recipient,
    Status,
    connection_ids,
    joined_at,
    principal_value,
    recipients_of,
)
from chalicelib.store.memberships import Memberships
from chalicelib.store.rate_limits import Meter

MAX_GROUPS = aws_limits.CONNECTION_GROUPS
TRIES = 5  # while a connection's groups or principal change beside us
REFRESHED_REMEMBERED = 10_000
PROBE_EVERY_MS = 60_000
CLOSED_SLOTS = ("closed0", "closed1", "closed2")  # attributes of a user's item
CLOSED_SLOT_MS = 2 * aws_limits.HANDSHAKE_SECONDS * 1000

EXISTS = Clause(when=("attribute_exists(connectionId)",))


class LimitReached(TooManyConnections):
    """The user has as many connections as the limit allows: `recipients`, the oldest first."""

    def __init__(self, limit: int, recipients: list[Recipient]) -> None:
        super().__init__(f"the user has {limit} connections, which is the limit")
        self.recipients = recipients


class Connections:
    """Every transition. All methods raise Unavailable when storage is; `now` is always in epoch
    milliseconds."""

    def __init__(
        self,
        store: Store,
        *,
        limit: int,
        connects: Meter,
        messages: Meter,
        memberships: Memberships,
        metrics: Metrics,
    ) -> None:
        """`limit` is a user's number of connections; the meters charge what users ask for."""
        self._store = store
        self._tables = store.tables
        self._limit = limit
        self._connects = connects
        self._messages = messages
        self._memberships = memberships
        self._metrics = metrics
        self._refreshed: OrderedDict[str, Principal] = OrderedDict()

    # --- → active

    def open(self, connection: Connection) -> None:
        """The connection, its tie to its user and its groups' memberships.

        Opening one that is open changes nothing. Raises LimitReached when the user has as many as
        the limit allows, however many connect at once; RateLimited; and ConnectionGone when its
        `$disconnect` has been here already.
        """
        recipient = connection.recipient

        def write(charge: Sequence[Clause]) -> Item | None:
            actions = [
                put(
                    self._tables.connections,
                    connection.to_item(),
                    Clause(when=("attribute_not_exists(connectionId)",)),
                ),
                self._user(recipient, _tie(connection), self._room_for(connection), *charge),
                *(self._membership(connection, group) for group in connection.groups),
            ]
            try:
                self._store.transact(actions)
            except Cancelled as cancelled:
                stored, user = cancelled.items[:2]
                return None if stored else self._refusal(recipient, user or {})
            return None

        self._connects.charge(recipient.user_key, connection.timestamp, write)

    def record_activity(
        self, connection_id: str, believed: Principal, now: int, messages: int
    ) -> Principal:
        """A message from the client came, with so many messages for others: charge its user, and
        note that both live. The connection's principal.

        `believed` is the principal that it had when it was opened; only `refresh` changes that.
        Raises ConnectionGone when it is terminated; RateLimited, QuotaExceeded.
        """
        principal = self._refreshed.get(connection_id, believed)
        heard = Clause(
            set=("#status = :active", "#timestamp = :now"),
            when=("principal = :principal",),
            names={"#status": "status", "#timestamp": "timestamp"},
            values={":active": {"S": Status.ACTIVE}, ":now": number(now)},
        )

        def write(charge: Sequence[Clause]) -> Item | None:
            nonlocal principal
            for _ in range(TRIES):
                assumed = Clause(values={":principal": principal_value(principal)})
                user = {"user": {"S": principal.key}}
                actions = [
                    self._connection(connection_id, EXISTS, heard, assumed),
                    update(self._tables.users, user, _seen(now), *charge),
                ]
                try:
                    self._store.transact(actions)
                except Cancelled as cancelled:
                    stored, charged = cancelled.items
                    if stored is None:
                        return charged
                    if not stored:
                        raise ConnectionGone("the connection has ended: connect again") from None
                    principal = Connection.from_item(stored).principal
                    self._remember(connection_id, principal)
                else:
                    return None
            raise Unavailable("the connection's token changes too fast", retry_after=1.0)

        self._messages.charge(believed.key, now, write, messages)
        return principal

    def revive(self, connection_id: str, now: int) -> None:
        """A probe showed that its socket is open."""
        self._set_status(connection_id, Status.ACTIVE, now)

    # --- → stale

    def mark_stale(self, connection_id: str) -> None:
        """It did not take a delivery, and may be dead."""
        self._set_status(connection_id, Status.STALE)

    # --- → terminated

    def remove(self, recipient: Recipient, now: int, groups: Iterable[str] = ()) -> bool:
        """The item, the tie to the user and every membership go. Whether it was there.

        `groups` are those that it is thought to be in: a right guess saves a call. One that may
        still be in its handshake can't be opened afterwards: its `$disconnect` has overtaken its
        `$connect`.
        """
        guess = dict.fromkeys(groups, recipient.connected_at)
        unread = [_never_joined(guess)]
        ended = [_untied(recipient), *_tombstone(recipient, now), _seen(now)]
        for _ in range(TRIES):
            actions = [
                self._delete(recipient.connection_id, frozenset(guess), *unread),
                self._user(recipient, *ended),
                *(self._no_membership(recipient, group) for group in guess),
                *self._memberships.ended(recipient, guess, now),
            ]
            try:
                self._store.transact(actions)
                self._metrics.count("ConnectionsClosed")
                self._metrics.value("ConnectionDuration", now - recipient.connected_at)
                return True
            except Cancelled as cancelled:
                stored = cancelled.items[0]
            if not stored:
                self.untie(recipient, now)
                return False
            guess, unread = joined_at(stored), []
        raise Unavailable("the connection's groups change faster than they can be left")

    def untie(self, recipient: Recipient, now: int) -> None:
        """Make a user's item forget a connection that has no item of its own."""
        tombstone = _tombstone(recipient, now)
        values = {":id": {"S": recipient.connection_id}}
        tied = Clause(when=("contains(#connections, :id)",), values=values)
        others = [*tombstone, _seen(now)] if tombstone else [tied]
        with suppress(Cancelled):  # then there is nothing to mend
            self._store.update(self._user(recipient, _untied(recipient), *others))

    # --- What changes while it is active

    def join(self, connection: Connection, group: str, now: int) -> None:
        """Make a connection a member of a group. Raises BadRequest for one group too many, and
        ConnectionGone when it is terminated."""
        since = Clause()
        if group not in connection.groups:
            since = Clause(
                set=("#joined = :now",),
                names={"#joined": JOINED_PREFIX + group},
                values={":now": number(now)},
            )
        joined = Clause(
            add=("#groups :groups",),
            when=(
                "attribute_not_exists(#groups) OR contains(#groups, :group)"
                " OR size(#groups) < :most",
            ),
            names={"#groups": "groups"},
            values={
                ":groups": {"SS": [group]},
                ":group": {"S": group},
                ":most": number(MAX_GROUPS),
            },
        )
        membership = self._membership(connection, group)
        if self._change(connection, [joined, since], [membership]) is not None:
            raise BadRequest(f"a connection can be in {MAX_GROUPS} groups")

    def leave(self, connection: Connection, group: str, now: int) -> None:
        """End a membership, if there is one. Raises ConnectionGone when it is terminated."""
        left = Clause(
            delete=("#groups :groups",),
            remove=("#joined",),
            names={"#groups": "groups", "#joined": JOINED_PREFIX + group},
            values={":groups": {"SS": [group]}},
        )
        recipient = connection.recipient
        others = [
            self._no_membership(recipient, group),
            *self._memberships.left(recipient, [group], now),
        ]
        self._change(connection, [left], others)

    def refresh(self, connection: Connection, principal: Principal, now: int) -> None:
        """Give a connection a new token's principal, which is the same user's. Groups that the
        new token doesn't allow are left. Raises ConnectionGone when it is terminated."""
        for _ in range(TRIES):
            kept = frozenset(filter(principal.may_join, connection.groups))
            renewed = replace(connection, principal=principal, groups=kept)
            recipient, lost = connection.recipient, connection.groups - kept
            stored = self._change(
                connection,
                [_renewal(connection.groups, renewed), _no_longer_joined(lost)],
                [
                    self._user(renewed.recipient, _tie(renewed)),
                    *(self._membership(renewed, group) for group in kept),
                    *(self._no_membership(recipient, group) for group in lost),
                    *self._memberships.left(recipient, lost, now),
                ],
            )
            if stored is None:
                self._remember(connection.connection_id, principal)
                return
            connection = Connection.from_item(stored)
        raise Unavailable("the connection's groups change faster than they can be read")

    # --- What is known

    def find(self, connection_id: str) -> Connection | None:
        """A connection by its id; None if it is terminated, or never was."""
        item = self._store.get(self._tables.connections, {"connectionId": {"S": connection_id}})
        return None if item is None else Connection.from_item(item)

    def may_probe(self, user_key: str, now: int) -> bool:
        """Whether a full user's connections may be probed: once a minute, whoever asks."""
        claim = Clause(
            set=("probedAt = :now",),
            when=("attribute_not_exists(probedAt) OR probedAt < :before",),
            values={":now": number(now), ":before": number(now - PROBE_EVERY_MS)},
        )
        try:
            self._store.update(update(self._tables.users, {"user": {"S": user_key}}, claim))
        except Cancelled:
            return False
        return True

    # --- What the transitions are made of

    def _room_for(self, connection: Connection) -> Clause:
        """The conditions on the user's item under which a connection can be opened."""
        return Clause(
            when=(
                "attribute_not_exists(#connections) OR size(#connections) < :limit",
                *(f"NOT contains({slot}, :id)" for slot in CLOSED_SLOTS),
            ),
            names={"#connections": "connections"},
            values={
                ":id": {"S": connection.connection_id},
                ":limit": number(self._limit),
            },
        )

    def _refusal(self, recipient: Recipient, user: Mapping[str, Any]) -> Item:
        """Raise what a user's item says against a connection, or else it's the charge: the item."""
        tombstones = [user[slot]["SS"] for slot in CLOSED_SLOTS if slot in user]
        if any(recipient.connection_id in ids for ids in tombstones):
            raise ConnectionGone("the client has left already")
        if len(connection_ids(user)) >= self._limit:
            recipients = recipients_of(user, recipient.user_id, recipient.tenant)
            raise LimitReached(self._limit, recipients)
        return dict(user)

    def _change(
        self, connection: Connection, parts: Sequence[Clause], others: list[Action]
    ) -> Item | None:
        """Write; the item where the conditions of `parts` do not hold for it."""
        try:
            self._store.transact(
                [self._connection(connection.connection_id, EXISTS, *parts), *others]
            )
        except Cancelled as cancelled:
            stored = cancelled.items[0]
            if not stored:
                raise ConnectionGone("the connection has ended: connect again") from None
            return stored
        return None

    def _set_status(self, connection_id: str, status: Status, now: int | None = None) -> None:
        part = Clause(
            set=("#status = :status",),
            names={"#status": "status"},
            values={":status": {"S": status}},
        )
        heard = Clause()
        if now is not None:
            heard = Clause(
                set=("#timestamp = :now",),
                names={"#timestamp": "timestamp"},
                values={":now": number(now)},
            )
        with suppress(Cancelled):  # terminated: an update of nothing would make a ghost
            self._store.update(self._connection(connection_id, EXISTS, part, heard))

    def _connection(self, connection_id: str, *parts: Clause) -> Action:
        return update(self._tables.connections, {"connectionId": {"S": connection_id}}, *parts)

    def _user(self, recipient: Recipient, *parts: Clause) -> Action:
        return update(self._tables.users, {"user": {"S": recipient.user_key}}, *parts)

    def _delete(self, connection_id: str, groups: frozenset[str], *parts: Clause) -> Action:
        part = Clause(when=("attribute_not_exists(#groups)",), names={"#groups": "groups"})
        if groups:
            values = {":groups": {"SS": sorted(groups)}}
            part = Clause(when=("#groups = :groups",), names={"#groups": "groups"}, values=values)
        key = {"connectionId": {"S": connection_id}}
        return delete(self._tables.connections, key, EXISTS, part, *parts)

    def _membership(self, connection: Connection, group: str) -> Action:
        return put(self._tables.groups, connection.membership(group))

    def _no_membership(self, recipient: Recipient, group: str) -> Action:
        key = {
            "group": {"S": group_key(recipient.tenant, group)},
            "connectionId": {"S": recipient.connection_id},
        }
        return delete(self._tables.groups, key)

    def _remember(self, connection_id: str, principal: Principal) -> None:
        self._refreshed[connection_id] = principal
        self._refreshed.move_to_end(connection_id)
        if len(self._refreshed) > REFRESHED_REMEMBERED:
            self._refreshed.popitem(last=False)


def _seen(now: int) -> Clause:
    """A user was seen: how long their item is kept counts from then."""
    return Clause(
        set=("lastSeen = :seen", "expiresAt = :expires"),
        values={":seen": number(now), ":expires": number(now // 1000 + USER_SECONDS)},
    )


def _tie(connection: Connection) -> Clause:
    """A connection in its user's item."""
    seen = _seen(connection.timestamp)
    return Clause(
        set=("#reach = :reach", *seen.set),
        add=("#connections :ids",),
        names={"#connections": "connections", "#reach": REACH_PREFIX + connection.connection_id},
        values={
            ":ids": {"SS": [connection.connection_id]},
            ":reach": connection.recipient.reach(),
            **seen.values,
        },
    )


def _untied(recipient: Recipient) -> Clause:
    """A connection no longer in its user's item."""
    return Clause(
        remove=("#reach",),
        delete=("#connections :ids",),
        names={"#connections": "connections", "#reach": REACH_PREFIX + recipient.connection_id},
        values={":ids": {"SS": [recipient.connection_id]}},
    )


def _tombstone(recipient: Recipient, now: int) -> list[Clause]:
    """What keeps a connection that has been closed so early from being opened, if it is early.

    The ids are kept by the minute in which they were closed, in slots that are used in turn; each
    write empties the one that comes next, so that nobody has to clean up.
    """
    if not recipient.may_be_in_handshake(now):
        return []
    minute = now // CLOSED_SLOT_MS
    this, after = (CLOSED_SLOTS[(minute + step) % len(CLOSED_SLOTS)] for step in (0, 1))
    values = {":ids": {"SS": [recipient.connection_id]}}
    return [Clause(add=(f"{this} :ids",), remove=(after,), values=values)]


def _never_joined(groups: Iterable[str]) -> Clause:
    """A connection has been in these groups since it was opened."""
    names = _joined_names(groups)
    return Clause(when=[f"attribute_not_exists({name})" for name in names], names=names)


def _no_longer_joined(groups: Iterable[str]) -> Clause:
    """Since when a connection was in these groups is of no interest any more."""
    names = _joined_names(groups)
    return Clause(remove=list(names), names=names)


def _joined_names(groups: Iterable[str]) -> dict[str, str]:
    return {f"#joined{index}": JOINED_PREFIX + group for index, group in enumerate(groups)}


def _renewal(groups: frozenset[str], renewed: Connection) -> Clause:
    """A connection's new principal and groups, as long as its groups are still `groups`."""
    item = renewed.to_item()
    names = {"#groups": "groups"}
    values = {
        ":principal": item["principal"],
        ":until": item["tokenUntil"],
        ":reach": item["reach"],
    }
    assignments = ["principal = :principal", "tokenUntil = :until", "reach = :reach"]
    when = "attribute_not_exists(#groups)"
    if groups:
        values[":old"] = {"SS": sorted(groups)}
        when = "#groups = :old"
    if not renewed.groups:
        return Clause(
            set=assignments, remove=("#groups",), when=(when,), names=names, values=values
        )
    values[":kept"] = item["groups"]
    return Clause(set=[*assignments, "#groups = :kept"], when=(when,), names=names, values=values)
