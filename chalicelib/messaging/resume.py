"""Resume: find the messages that a client missed while it was away, and send them.

A client names the last message that it has. It missed each later message to its user, its groups
and its tenant, except where the audience excludes it. It may also have missed a message with an
earlier id that was sent later. Such a message can't be distinguished from one that arrived in time,
unless one execution environment sent both. Messages in doubt are sent too, and the client drops the
ids that it has seen.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import groupby

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.delivery.frames import Framing
from chalicelib.delivery.parcel import Delivery, Parcel
from chalicelib.errors import BadRequest, Unavailable
from chalicelib.protocol.audience import AudienceKind
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import Result
from chalicelib.protocol.ulid import earliest, timestamp_of
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.history import REACH_BACK_MS, History, StoredMessage
from chalicelib.store.items import Recipient
from chalicelib.store.memberships import Memberships
from chalicelib.store.users import Users

CHUNK_MESSAGES = 100  # that are unpacked and framed at a time
CHUNK_BYTES = 1024 * 1024  # of packed messages in a chunk

logger = logging.getLogger("herald.resume")


@dataclass(frozen=True, slots=True)
class Resumed:
    """The number of messages that were sent, and whether they are all that the client missed."""

    count: int
    complete: bool


class Resumer:
    """Sends clients the messages that they missed."""

    def __init__(
        self,
        *,
        users: Users,
        history: History,
        memberships: Memberships,
        delivery: Delivery,
        framing: Framing,
    ) -> None:
        self._users = users
        self._history = history
        self._memberships = memberships
        self._delivery = delivery
        self._framing = framing

    def resume(
        self,
        principal: Principal,
        recipient: Recipient,
        after: str,
        now: EpochMs,
        deadline: Deadline,
    ) -> Resumed:
        """Send what a connection missed, the oldest message first.

        Args:
            principal: The user of the connection.
            recipient: The connection.
            after: The id of the last message that the client has.
            now: The time.
            deadline: When delivery must end.

        Raises:
            BadRequest: `after` is not an id.
            RateLimited: The user resumes too often.
            Unavailable: Storage or the connection failed; some messages may have been sent.
        """
        try:
            had_at = timestamp_of(after)
        except ValueError:
            raise BadRequest("after must be the id of a message") from None
        open_now = self._users.charge_resume(principal, now)
        if not self._history.seconds:
            return Resumed(0, complete=False)
        kept_since = EpochMs(now - self._history.seconds * 1000)
        since = EpochMs(max(min(had_at, now), kept_since) - REACH_BACK_MS)
        missed = _Missed(self._history, principal, recipient, after)
        joined = self._memberships.joined_since(principal, open_now, now)
        sent = 0
        for entries in _chunks(missed.entries(joined, since=since, kept_since=kept_since)):
            messages = missed.messages(entries)
            self._send(messages, principal, recipient, deadline)
            sent += len(messages)
        return Resumed(sent, complete=had_at >= kept_since and not missed.lost)

    def _send(
        self,
        messages: list[Message],
        principal: Principal,
        recipient: Recipient,
        deadline: Deadline,
    ) -> None:
        if not messages:
            return
        every_message = (1 << len(messages)) - 1
        framer = self._framing.framer(messages, principal.tenant)
        frames = framer.frames(every_message, principal.user_id)
        for outcome in self._delivery.deliver([[Parcel(recipient, frames)]], deadline):
            if outcome.result is not Result.DELIVERED:
                raise Unavailable(
                    f"not all missed messages could be sent ({outcome.reason}): resume again",
                    retry_after=1.0,
                )


class _Missed:
    """The messages that one connection missed, or may have.

    `lost` becomes true when there was one that can no longer be read.
    """

    def __init__(
        self, history: History, principal: Principal, recipient: Recipient, after: str
    ) -> None:
        self.lost = False
        self._history = history
        self._principal = principal
        self._recipient = recipient
        self._after = after

    def entries(
        self, joined: dict[str, EpochMs], *, since: EpochMs, kept_since: EpochMs
    ) -> Iterator[StoredMessage]:
        """Yield each entry once, in the order of the ids.

        Args:
            joined: The user's groups, each with the time at which the user joined it.
            since: The time from which on the connection may have missed messages.
            kept_since: The time from which on messages are kept; older ones count as lost.
        """
        delayed = {
            entry.id: entry
            for entry in self._history.delayed(self._principal.tenant, kept_since)
            if self._is_for_user(entry, joined)
        }
        oldest = earliest(kept_since)
        for entry in self._by_id(joined, since, delayed):
            if entry.id >= oldest or entry.id in delayed:
                yield entry
            else:
                self.lost = True

    def _by_id(
        self, joined: dict[str, EpochMs], since: EpochMs, delayed: dict[str, StoredMessage]
    ) -> Iterator[StoredMessage]:
        """Yield the user's entries that the client missed, or may have missed."""
        history, tenant = self._history, self._principal.tenant
        streams = (
            sorted(delayed.values(), key=_id),
            history.of_user(tenant, self._principal.user_id, since),
            history.of_everyone(tenant, since),
            *(history.of_group(tenant, group, max(since, at)) for group, at in joined.items()),
        )
        unique = (next(same) for _, same in groupby(merge(*streams, key=_id), key=_id))
        in_doubt: list[StoredMessage] = []
        for entry in unique:
            if entry.id > self._after:
                yield from in_doubt
                in_doubt = []
                yield entry
            elif entry.id < self._after:
                in_doubt.append(entry)
            else:  # the client's last message: its request tells what was sent before it
                in_doubt = [
                    one
                    for one in in_doubt
                    if one.id in delayed or not one.request.precedes(entry.request)
                ]
        yield from in_doubt

    def messages(self, entries: Iterable[StoredMessage]) -> list[Message]:
        """Return the entries' messages, without those whose audience excludes the connection."""
        opened = map(self._open, entries)
        return [message for message in opened if message and not self._is_excluded(message)]

    def _open(self, entry: StoredMessage) -> Message | None:
        try:
            return self._history.decode(entry)
        except KeyError:
            logger.error("message %s can't be resumed: its master key was removed", entry.id)
            self.lost = True
            return None

    def _is_excluded(self, message: Message) -> bool:
        audience = message.audience
        return (
            self._principal.user_id in audience.except_users
            or self._recipient.connection_id in audience.except_connections
        )

    def _is_for_user(self, entry: StoredMessage, joined: dict[str, EpochMs]) -> bool:
        """Return whether a delayed message, which can be for anybody, is for this user."""
        message = self._open(entry)
        if message is None:
            return False
        names = message.audience.names
        match message.audience.kind:
            case AudienceKind.USERS:
                return self._principal.user_id in names
            case AudienceKind.GROUPS:
                return any(name in joined and joined[name] <= message.timestamp for name in names)
            case _:
                return True


def _chunks(entries: Iterable[StoredMessage]) -> Iterator[list[StoredMessage]]:
    """Cut entries into lists that fit into memory."""
    chunk: list[StoredMessage] = []
    size = 0
    for entry in entries:
        if chunk and (len(chunk) == CHUNK_MESSAGES or size + len(entry.content) > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(entry)
        size += len(entry.content)
    if chunk:
        yield chunk


def _id(entry: StoredMessage) -> str:
    return entry.id
