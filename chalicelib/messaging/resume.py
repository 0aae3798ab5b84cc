"""What a client missed while it was away: which messages, and their way to it.

A client names the last message that it has. It misses what came to its user, its groups and its
tenant after that, less the exceptions; and what has an earlier id, but reached others later: such a
message can't be told from one that the client had in time, unless one execution environment sent
both. Those in doubt are sent, and whoever has them drops them.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import groupby

from chalicelib.auth.principal import Principal
from chalicelib.delivery.frames import Framer
from chalicelib.delivery.parcel import Delivery, Parcel
from chalicelib.errors import BadRequest, Unavailable
from chalicelib.protocol.audience import AudienceKind
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import Result
from chalicelib.protocol.ulid import earliest, moment_of
from chalicelib.store.history import REACH_BACK_MS, History, StoredMessage
from chalicelib.store.items import Recipient
from chalicelib.store.memberships import Memberships
from chalicelib.store.users import Users

CHUNK_MESSAGES = 100
CHUNK_BYTES = 1024 * 1024  # of packed messages: what is unpacked and framed at a time

logger = logging.getLogger("herald.resume")


@dataclass(frozen=True, slots=True)
class Resumed:
    """How many messages were sent, and whether they are all that there were."""

    count: int
    complete: bool


class Resumer:
    """Sends clients what they missed."""

    def __init__(
        self,
        *,
        users: Users,
        history: History,
        memberships: Memberships,
        delivery: Delivery,
        encryption: Encryption,
        frame_bytes: int,
    ) -> None:
        """`frame_bytes`: see `Framer`."""
        self._users = users
        self._history = history
        self._memberships = memberships
        self._delivery = delivery
        self._encryption = encryption
        self._frame_bytes = frame_bytes

    def resume(
        self, principal: Principal, recipient: Recipient, after: str, now: int, deadline: float
    ) -> Resumed:
        """Send what a connection missed after the message with the id `after`, the oldest first.

        `now` is in epoch milliseconds, `deadline` in `time.monotonic` seconds. Raises BadRequest
        for what is no id, RateLimited, and Unavailable; then some may have been sent.
        """
        try:
            moment = moment_of(after)
        except ValueError:
            raise BadRequest("after must be the id of a message") from None
        open_now = self._users.charge_resume(principal, now)
        kept_since = now - self._history.seconds * 1000
        if not self._history.seconds:
            return Resumed(0, complete=False)
        since = max(min(moment, now), kept_since) - REACH_BACK_MS
        missed = _Missed(self._history, principal, recipient, after)
        joined = self._memberships.joined_since(principal, open_now, now)
        sent = 0
        for entries in _chunks(missed.entries(joined, since, kept_since)):
            messages = missed.messages(entries)
            self._send(messages, principal, recipient, deadline)
            sent += len(messages)
        return Resumed(sent, complete=moment >= kept_since and not missed.lost)

    def _send(
        self,
        messages: list[Message],
        principal: Principal,
        recipient: Recipient,
        deadline: float,
    ) -> None:
        if not messages:
            return
        framer = Framer(messages, self._frame_bytes, principal.tenant, self._encryption)
        frames = framer.frames((1 << len(messages)) - 1, principal.user_id)
        for outcome in self._delivery.deliver([[Parcel(recipient, frames)]], deadline):
            if outcome.result is not Result.DELIVERED:
                raise Unavailable(f"not all could be sent: {outcome.reason}", retry_after=1.0)


class _Missed:
    """What one connection missed. `lost` tells of a message that can't be had any more."""

    def __init__(
        self, history: History, principal: Principal, recipient: Recipient, after: str
    ) -> None:
        self.lost = False
        self._history = history
        self._principal = principal
        self._recipient = recipient
        self._after = after

    def entries(
        self, joined: dict[str, int], since: int, kept_since: int
    ) -> Iterator[StoredMessage]:
        """What it missed of its streams, by id, each message once. `joined` says since when its
        user has been in their groups; from `since` on it may have missed something, of which it
        gets what is not older than `kept_since` (epoch milliseconds)."""
        history, tenant = self._history, self._principal.tenant
        late = {
            entry.id: entry
            for entry in history.delayed(tenant, kept_since)
            if self._concerns(entry, joined)
        }
        oldest = earliest(kept_since)
        for entry in self._by_id(joined, since, late):
            if entry.id >= oldest or entry.id in late:
                yield entry
            else:
                self.lost = True

    def _by_id(
        self, joined: dict[str, int], since: int, late: dict[str, StoredMessage]
    ) -> Iterator[StoredMessage]:
        """What it missed, or may have."""
        history, tenant = self._history, self._principal.tenant
        streams = (
            sorted(late.values(), key=_id),
            history.of_user(tenant, self._principal.user_id, since),
            history.of_everyone(tenant, since),
            *(history.of_group(tenant, group, max(since, at)) for group, at in joined.items()),
        )
        once = (next(same) for _, same in groupby(merge(*streams, key=_id), key=_id))
        before: list[StoredMessage] = []
        for entry in once:
            if entry.id > self._after:
                yield from before
                before = []
                yield entry
            elif entry.id < self._after:
                before.append(entry)
            else:
                had = entry.request
                before = [one for one in before if one.id in late or not one.request.precedes(had)]
        yield from before

    def messages(self, entries: Iterable[StoredMessage]) -> list[Message]:
        """Those that are not excepted."""
        opened = map(self._open, entries)
        return [message for message in opened if message and not self._is_excepted(message)]

    def _open(self, entry: StoredMessage) -> Message | None:
        try:
            return self._history.decode(entry)
        except KeyError:
            logger.error("a master key is gone: %s can't be resumed", entry.id)
            self.lost = True
            return None

    def _is_excepted(self, message: Message) -> bool:
        audience = message.audience
        return (
            self._principal.user_id in audience.except_users
            or self._recipient.connection_id in audience.except_connections
        )

    def _concerns(self, entry: StoredMessage, joined: dict[str, int]) -> bool:
        """Whether a message to anybody is for this user."""
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
    """Entries in lists of a size that can be held in memory."""
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
