"""The clauses and actions of which a connection's transitions consist. No I/O.

A *tie* is a connection's id and its `reach` in its user's item, with what else is noted there about
the connection (`schema.TIE_PREFIXES`). A *tombstone* is the id of a connection that ended during
its handshake.
"""

from collections.abc import Iterable

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.store.expressions import Action, Clause, delete, number, put, update
from chalicelib.store.items import Connection, Recipient, Status, principal_digest, principal_value
from chalicelib.store.schema import (
    ACTIVITY_PREFIX,
    CLOSED_SLOTS,
    JOINED_PREFIX,
    PRINCIPAL_PREFIX,
    REACH_PREFIX,
    REFUSED_PREFIX,
    TIE_PREFIXES,
    Item,
    Tables,
    connection_key,
    membership_key,
    roster_key,
    user_expires_at,
    user_item_key,
)

CLOSED_SLOT_MS = 60_000  # longer than a handshake can take
PROBE_EVERY_MS = 60_000

EXISTS = Clause(when=("attribute_exists(connectionId)",))
DOES_NOT_EXIST = Clause(when=("attribute_not_exists(connectionId)",))


# --- Actions


def update_connection(tables: Tables, connection_id: str, *clauses: Clause) -> Action:
    """Return an update of a connection that exists."""
    return update(tables.connections, connection_key(connection_id), EXISTS, *clauses)


def put_connection(tables: Tables, connection: Connection) -> Action:
    """Return the creation of a connection that does not exist."""
    return put(tables.connections, connection.to_item(), DOES_NOT_EXIST)


def delete_connection(tables: Tables, connection_id: str, *clauses: Clause) -> Action:
    """Return the deletion of a connection that exists."""
    return delete(tables.connections, connection_key(connection_id), EXISTS, *clauses)


def delete_stored(tables: Tables, recipient: Recipient) -> Action:
    """Return the deletion of a connection's item, if there is one."""
    return delete(tables.connections, connection_key(recipient.connection_id))


def update_user(tables: Tables, user_key: str, *clauses: Clause) -> Action:
    """Return an update of a user's item, which creates it if need be."""
    return update(tables.users, user_item_key(user_key), *clauses)


def put_membership(tables: Tables, connection: Connection, group: str) -> Action:
    """Return the creation of a connection's membership in a group."""
    return put(tables.groups, connection.membership(group))


def put_roster_entry(tables: Tables, connection: Connection) -> Action:
    """Return the creation of a connection's entry in its tenant's roster."""
    return put(tables.groups, connection.roster_entry())


def delete_roster_entry(tables: Tables, recipient: Recipient) -> Action:
    """Return the deletion of a connection's entry in its tenant's roster."""
    return delete(tables.groups, roster_key(recipient.tenant, recipient.connection_id))


def delete_membership(tables: Tables, recipient: Recipient, group: str) -> Action:
    """Return the deletion of a connection's membership in a group."""
    return delete(tables.groups, membership_key(recipient.tenant, group, recipient.connection_id))


# --- A connection's item


def has_principal(principal: Principal) -> Clause:
    """Return the condition that a connection has this principal."""
    return Clause(
        when=("principal = :principal",), values={":principal": principal_value(principal)}
    )


def has_groups(groups: Iterable[str]) -> Clause:
    """Return the condition that a connection is in exactly these groups."""
    names = {"#groups": "groups"}
    if expected := sorted(groups):
        return Clause(
            when=("#groups = :expected",), names=names, values={":expected": {"SS": expected}}
        )
    return Clause(when=("attribute_not_exists(#groups)",), names=names)


def set_active(now: EpochMs) -> Clause:
    """Return the change of a connection to active, with its last activity at `now`."""
    return Clause(
        set=("#status = :status", "#timestamp = :now"),
        remove=("staleAt",),
        names={"#status": "status", "#timestamp": "timestamp"},
        values={":status": {"S": Status.ACTIVE}, ":now": number(now)},
    )


def set_stale(now: EpochMs) -> Clause:
    """Return the note that a delivery to a connection failed at `now`."""
    return Clause(
        set=("#status = :status", "staleAt = :now"),
        names={"#status": "status"},
        values={":status": {"S": Status.STALE}, ":now": number(now)},
    )


def set_heartbeat(now: EpochMs, due: EpochMs) -> list[Clause]:
    """Return the change of a connection to active by a heartbeat, on condition that the one before
    was at `due` or earlier.

    The SDK may write it twice, if the first answer is lost.
    """
    heartbeat = Clause(
        set=("heartbeatAt = :now",),
        when=("attribute_not_exists(heartbeatAt) OR heartbeatAt <= :due OR heartbeatAt = :now",),
        values={":now": number(now), ":due": number(due)},
    )
    return [set_active(now), heartbeat]


def has_no_activity_since(at: EpochMs) -> Clause:
    """Return the condition that a connection's item has no activity and no failure since `at`."""
    return Clause(
        when=("#timestamp < :at", "attribute_not_exists(staleAt) OR staleAt < :at"),
        names={"#timestamp": "timestamp"},
        values={":at": number(at)},
    )


def add_group(group: str, most: int) -> Clause:
    """Return the addition of a group to a connection, on condition that it is in it already or in
    fewer than `most` groups."""
    return Clause(
        add=("#groups :groups",),
        when=(
            "attribute_not_exists(#groups) OR contains(#groups, :group) OR size(#groups) < :most",
        ),
        names={"#groups": "groups"},
        values={":groups": {"SS": [group]}, ":group": {"S": group}, ":most": number(most)},
    )


def set_joined_at(group: str, now: EpochMs) -> Clause:
    """Return the record that a connection joined a group at `now`."""
    return Clause(
        set=("#joined = :now",),
        names={"#joined": JOINED_PREFIX + group},
        values={":now": number(now)},
    )


def remove_group(group: str) -> Clause:
    """Return the removal of a group from a connection, and of the time at which it was joined."""
    return Clause(
        delete=("#groups :groups",),
        remove=("#joined",),
        names={"#groups": "groups", "#joined": JOINED_PREFIX + group},
        values={":groups": {"SS": [group]}},
    )


def remove_joined_at(groups: Iterable[str]) -> Clause:
    """Return the removal of the times at which a connection joined these groups."""
    names = _joined_names(groups)
    return Clause(remove=list(names), names=names)


def _joined_names(groups: Iterable[str]) -> dict[str, str]:
    return {f"#joined{index}": JOINED_PREFIX + group for index, group in enumerate(groups)}


def count_change() -> Clause:
    """Return the count of a change of a connection's memberships or roster entry."""
    return Clause(add=("changes :one",), values={":one": number(1)})


def has_changes(item: Item) -> Clause:
    """Return the condition that a connection's memberships are those that its item shows."""
    if "changes" in item:
        return Clause(when=("changes = :changes",), values={":changes": item["changes"]})
    return Clause(when=("attribute_not_exists(changes)",))


def set_principal(renewed: Connection) -> list[Clause]:
    """Return the changes that give a connection the principal and the groups of `renewed`."""
    item = renewed.to_item()
    principal = Clause(
        set=("principal = :principal", "tokenUntil = :until", "reach = :reach"),
        values={
            ":principal": item["principal"],
            ":until": item["tokenUntil"],
            ":reach": item["reach"],
        },
    )
    names = {"#groups": "groups"}
    if renewed.groups:
        groups = Clause(set=("#groups = :kept",), names=names, values={":kept": item["groups"]})
    else:
        groups = Clause(remove=("#groups",), names=names)
    return [principal, groups]


# --- A user's item


def set_last_seen(now: EpochMs) -> Clause:
    """Return the change of when a user was last seen, which also renews the item's TTL."""
    return Clause(
        set=("lastSeen = :seen", "expiresAt = :expires"),
        values={":seen": number(now), ":expires": number(user_expires_at(now))},
    )


def set_user_expiry(now: EpochMs) -> Clause:
    """Return the renewal of the TTL of a user's item, for one whose user was not seen."""
    return Clause(set=("expiresAt = :expires",), values={":expires": number(user_expires_at(now))})


def add_tie(connection: Connection) -> Clause:
    """Return the addition of a connection to its user's item."""
    return Clause(
        set=("#reach = :reach",),
        add=("#connections :ids",),
        names={"#connections": "connections", "#reach": REACH_PREFIX + connection.connection_id},
        values={
            ":ids": {"SS": [connection.connection_id]},
            ":reach": connection.recipient.reach(),
        },
    )


def remove_tie(recipient: Recipient) -> Clause:
    """Return the removal of a connection from its user's item, with all that is noted there."""
    tied = {
        f"#tied{index}": prefix + recipient.connection_id
        for index, prefix in enumerate(TIE_PREFIXES)
    }
    return Clause(
        remove=list(tied),
        delete=("#connections :ids",),
        names={"#connections": "connections", **tied},
        values={":ids": {"SS": [recipient.connection_id]}},
    )


def has_tie(recipient: Recipient) -> Clause:
    """Return the condition that a user's item has a connection."""
    return Clause(
        when=("contains(#connections, :id)",),
        names={"#connections": "connections"},
        values={":id": {"S": recipient.connection_id}},
    )


def add_activity(connection_id: str, now: EpochMs) -> Clause:
    """Return the note that a connection was active at `now`, on condition that it is tied."""
    return Clause(
        set=("#activity = :now",),
        when=("contains(#connections, :id)",),
        names={"#connections": "connections", "#activity": ACTIVITY_PREFIX + connection_id},
        values={":now": number(now), ":id": {"S": connection_id}},
    )


def set_noted_principal(connection: Connection) -> Clause:
    """Return the note that a connection's token was refreshed."""
    return Clause(
        set=("#principal = :digest",),
        names={"#principal": PRINCIPAL_PREFIX + connection.connection_id},
        values={":digest": principal_digest(connection.principal)},
    )


def has_noted_principal(connection_id: str, principal: Principal) -> Clause:
    """Return the condition that a connection's token was not refreshed, or has this principal."""
    return Clause(
        when=("attribute_not_exists(#principal) OR #principal = :digest",),
        names={"#principal": PRINCIPAL_PREFIX + connection_id},
        values={":digest": principal_digest(principal)},
    )


def has_no_refusals(connection_id: str) -> Clause:
    """Return the condition that a connection's last frame was not refused."""
    return Clause(
        when=("attribute_not_exists(#refused)",),
        names={"#refused": REFUSED_PREFIX + connection_id},
    )


def add_refusal(connection_id: str) -> Clause:
    """Return the addition of a frame to those of a connection that were refused in a row, on
    condition that it is tied."""
    return Clause(
        add=("#refused :one",),
        when=("contains(#connections, :id)",),
        names={"#connections": "connections", "#refused": REFUSED_PREFIX + connection_id},
        values={":one": number(1), ":id": {"S": connection_id}},
    )


def remove_refusals(connection_id: str) -> Clause:
    """Return the end of a row of refused frames, on condition that the connection is tied."""
    return Clause(
        remove=("#refused",),
        when=("contains(#connections, :id)",),
        names={"#connections": "connections", "#refused": REFUSED_PREFIX + connection_id},
        values={":id": {"S": connection_id}},
    )


def has_room_for(connection_id: str, limit: int) -> Clause:
    """Return the conditions that a user has fewer than `limit` connections, and that this one has
    no tombstone."""
    return Clause(
        when=(
            "attribute_not_exists(#connections) OR size(#connections) < :limit",
            *(f"NOT contains({slot}, :id)" for slot in CLOSED_SLOTS),
        ),
        names={"#connections": "connections"},
        values={":id": {"S": connection_id}, ":limit": number(limit)},
    )


def add_tombstone(recipient: Recipient, now: EpochMs) -> list[Clause]:
    """Return the addition of a connection's tombstone, if it may still be in its handshake.

    Tombstones are kept by the minute in which they were added, in slots that are used in turn. Each
    addition empties the next slot, so that no one has to clean up.
    """
    if not recipient.may_be_in_handshake(now):
        return []
    minute = now // CLOSED_SLOT_MS
    slot, next_slot = (CLOSED_SLOTS[(minute + step) % len(CLOSED_SLOTS)] for step in (0, 1))
    values = {":ids": {"SS": [recipient.connection_id]}}
    return [Clause(add=(f"{slot} :ids",), remove=(next_slot,), values=values)]


def claim_probe(now: EpochMs) -> Clause:
    """Return the record that a user's connections are probed at `now`, on condition that they were
    not in the last minute."""
    return Clause(
        set=("probedAt = :now",),
        when=("attribute_not_exists(probedAt) OR probedAt < :before",),
        values={":now": number(now), ":before": number(now - PROBE_EVERY_MS)},
    )
