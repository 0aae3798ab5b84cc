"""The messages that one connection missed, or may have, by id, in bounded memory.

They are in the streams of the user, of the user's groups and of the tenant. These are read side by
side, a page of each at a time. Whatever others have sent, only so many bytes wait in memory as
`ResumeLimits` says; what has no room is read again when its turn comes.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from heapq import merge, nsmallest
from itertools import groupby
from typing import NamedTuple

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.protocol.audience import AudienceKind
from chalicelib.protocol.ulid import earliest, timestamp_of
from chalicelib.store.delayed import DelayedMessage, name_digest
from chalicelib.store.history import History, StreamPage
from chalicelib.store.items import Recipient
from chalicelib.store.schema import everyone_stream, group_stream, user_stream
from chalicelib.store.stored_messages import RequestNumber, StoredMessage

logger = logging.getLogger("herald.resume")


class ResumeLimits(NamedTuple):
    """The memory of a resume."""

    page_bytes: int = 2 * 1024 * 1024
    """Stored messages that wait to be merged, of all streams together."""
    doubt_bytes: int = 1024 * 1024
    """Stored messages that are held until the client's last message is found."""
    delayed_messages: int = 5000
    """References to delayed messages; when there are more, they are read again."""
    delayed_bytes: int = 1024 * 1024
    """Delayed messages that are fetched at a time."""
    chunk_bytes: int = 512 * 1024
    """Messages, as text, that are framed at a time."""
    chunk_messages: int = 100


DEFAULT_LIMITS = ResumeLimits()


class _Reference(NamedTuple):
    """A delayed message for the user, and a stream that has it."""

    id: str
    stream: str
    size: int


class _Copy(NamedTuple):
    """A message as one of the streams has it; without `stored` it is in another one, too."""

    id: str
    stored: StoredMessage | None
    delayed: bool = False


class MissedMessage(NamedTuple):
    """A message that was missed. `text` is what frames have of it, before encryption."""

    id: str
    text: bytes
    encrypted: bool


class Missed:
    """The messages that one connection missed, or may have.

    `lost` becomes true when there was one that can no longer be read.
    """

    def __init__(
        self,
        history: History,
        principal: Principal,
        recipient: Recipient,
        after: str,
        *,
        joined: Mapping[str, EpochMs],
        since: EpochMs,
        kept_since: EpochMs,
        first_pages: Mapping[str, StreamPage] | None = None,
        may_be_delayed: bool = True,
        limits: ResumeLimits = DEFAULT_LIMITS,
    ) -> None:
        """Read nothing yet.

        Args:
            history: Where messages are kept.
            principal: The user of the connection.
            recipient: The connection.
            after: The id of the last message that the client has.
            joined: The user's groups, each with the time at which the user joined it.
            since: The time from which on the connection may have missed messages.
            kept_since: The time from which on messages are kept; older ones count as lost.
            first_pages: The first pages of streams that were read from `since` on already.
            may_be_delayed: Whether there may be references to delayed messages.
            limits: The memory to use.
        """
        self.lost = False
        self._history = history
        self._principal = principal
        self._recipient = recipient
        self._after = after
        self._joined = joined
        self._user_digest = name_digest(principal.user_id)
        self._groups_by_digest = {name_digest(group): group for group in joined}
        self._since = since
        self._kept_since = kept_since
        self._first_pages = first_pages or {}
        self._may_be_delayed = may_be_delayed
        self._limits = limits

    def chunks(self) -> Iterator[list[MissedMessage]]:
        """Yield the messages in the order of their ids, each once, in lists of a bounded size."""
        user_id, connection_id = self._principal.user_id, self._recipient.connection_id
        chunk: list[MissedMessage] = []
        size = 0
        for entry in self._entries():
            if entry.excepts(user_id, connection_id):
                continue
            text = self._text(entry)
            if text is None:
                continue
            full = size + len(text) > self._limits.chunk_bytes
            if chunk and (full or len(chunk) == self._limits.chunk_messages):
                yield chunk
                chunk, size = [], 0
            chunk.append(MissedMessage(entry.id, text, entry.encrypted))
            size += len(text)
        if chunk:
            yield chunk

    # --- Which messages

    def _entries(self) -> Iterator[StoredMessage]:
        """Yield each entry once, in the order of the ids."""
        oldest = earliest(self._kept_since)
        for copy in self._without_known(self._unique()):
            if copy.stored is not None and (copy.id >= oldest or copy.delayed):
                yield copy.stored
            else:
                self.lost = True

    def _without_known(self, copies: Iterable[_Copy]) -> Iterator[_Copy]:
        """Leave out the messages that the client certainly has.

        Those are its last one, and earlier ones whose request was carried out before. Messages are
        held until the last one is found; with too many, it is looked up.
        """
        held: list[_Copy] = []
        size = 0
        request = None
        looked_up = False
        for copy in copies:
            if copy.id > self._after:
                yield from held
                held = []
                yield copy
            elif copy.id == self._after:
                if copy.stored is not None:
                    request = copy.stored.request
                yield from _in_doubt(held, request)
                held = []
            elif looked_up:
                yield from _in_doubt([copy], request)
            else:
                held.append(copy)
                size += len(copy.stored.content) if copy.stored else 0
                if size > self._limits.doubt_bytes:
                    request = self._history.request_of(self._after, [*self._streams()])
                    looked_up = True
                    yield from _in_doubt(held, request)
                    held = []
        yield from held

    def _unique(self) -> Iterator[_Copy]:
        """Yield a copy of each message, by id."""
        streams = self._streams()
        page_bytes = self._limits.page_bytes // len(streams)
        reads = [
            map(_copy, self._history.read(stream, at, page_bytes, self._first_pages.get(stream)))
            for stream, at in streams.items()
        ]
        copies = merge(self._delayed(), *reads, key=_id)
        for message_id, same in groupby(copies, key=_id):
            stored, delayed = None, False
            for copy in same:
                stored, delayed = stored or copy.stored, delayed or copy.delayed
            yield _Copy(message_id, stored, delayed)

    def _streams(self) -> dict[str, EpochMs]:
        """Return the streams that can have messages for the user, and from which time on."""
        tenant = self._principal.tenant
        return {
            user_stream(tenant, self._principal.user_id): self._since,
            everyone_stream(tenant): self._since,
            **{
                group_stream(tenant, group): max(self._since, at)
                for group, at in self._joined.items()
            },
        }

    # --- Delayed messages

    def _delayed(self) -> Iterator[_Copy]:
        """Yield the delayed messages for the user, by id.

        Leaves out those that are in the streams anyway and can't be in doubt. Yields those that
        are in the streams without what is stored.
        """
        if not self._may_be_delayed:
            return
        most, done = self._limits.delayed_messages, ""
        in_streams = earliest(self._since)
        while True:
            references = nsmallest(most + 1, self._references(done), key=_id)
            unique = [next(same) for _, same in groupby(references[:most], key=_id)]
            yield from self._fetched([one for one in unique if one.id < in_streams])
            yield from (_Copy(one.id, None, True) for one in unique if one.id >= in_streams)
            if len(references) <= most:
                return
            done = references[most - 1].id

    def _references(self, done: str) -> Iterator[_Reference]:
        """Yield the delayed messages for the user with an id above `done`, in any order."""
        end = max(self._after, earliest(self._kept_since))
        for delayed in self._history.delayed(self._principal.tenant, self._kept_since):
            if done < delayed.id < end:
                stream = self._stream_of(delayed)
                if stream is not None:
                    yield _Reference(delayed.id, stream, delayed.size)

    def _stream_of(self, delayed: DelayedMessage) -> str | None:
        """Return a stream with a delayed message; None if it is not for the user."""
        tenant, sent = self._principal.tenant, timestamp_of(delayed.id)
        match delayed.kind:
            case AudienceKind.USERS:
                if self._user_digest in delayed.digests:
                    return user_stream(tenant, self._principal.user_id)
            case AudienceKind.GROUPS:
                for digest in delayed.digests & self._groups_by_digest.keys():
                    group = self._groups_by_digest[digest]
                    if self._joined[group] <= sent:
                        return group_stream(tenant, group)
            case _:
                return everyone_stream(tenant)
        return None

    def _fetched(self, references: list[_Reference]) -> Iterator[_Copy]:
        """Yield delayed messages with what is stored; without if nothing is."""
        for batch in _batches(references, self._limits.delayed_bytes):
            found = self._history.find([one.stream for one in batch], [one.id for one in batch])
            stored = {one.id: one for one in found}
            yield from (_Copy(one.id, stored.pop(one.id, None), True) for one in batch)

    # --- Messages

    def _text(self, entry: StoredMessage) -> bytes | None:
        try:
            return self._history.text(entry)
        except KeyError:
            logger.error("message %s can't be resumed: its master key was removed", entry.id)
            self.lost = True
            return None


def _batches(references: list[_Reference], most_bytes: int) -> Iterator[list[_Reference]]:
    """Cut references into lists whose messages fit into memory."""
    batch: list[_Reference] = []
    size = 0
    for one in references:
        if batch and size + one.size > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += one.size
    if batch:
        yield batch


def _in_doubt(copies: Iterable[_Copy], known: RequestNumber | None) -> Iterator[_Copy]:
    """Yield those that were not certainly sent before the client's last message."""
    for copy in copies:
        precedes = known is not None and copy.stored and copy.stored.request.precedes(known)
        if copy.delayed or not precedes:
            yield copy


def _copy(stored: StoredMessage) -> _Copy:
    return _Copy(stored.id, stored)


def _id(one: _Copy | _Reference) -> str:
    return one.id
