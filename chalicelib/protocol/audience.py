"""Audiences: whom a message is for, and which messages of a request are for a connection. No I/O.

A request carries up to 100 messages, each with an audience of its own. A *selection* is the set of
the messages that are for one connection, as an integer: bit n stands for the n-th message.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import reduce
from operator import or_
from typing import NamedTuple


class AudienceKind(StrEnum):
    """The ways to address a message; the values are the fields of `to`."""

    USERS = "users"
    GROUPS = "groups"
    CONNECTIONS = "connections"
    ALL = "all"


class Audience(NamedTuple):
    """An audience: `names` of one kind (empty for ALL), minus the exceptions."""

    kind: AudienceKind
    names: tuple[str, ...] = ()
    except_users: frozenset[str] = frozenset()
    except_connections: frozenset[str] = frozenset()


class Selector:
    """A selector of the messages of a request for each connection.

    The attributes `for_…` map each addressed name to its selection.
    """

    def __init__(self, audiences: Sequence[Audience]) -> None:
        """Take the audience of each message, in the messages' order."""
        self.for_all = 0
        self.for_users: defaultdict[str, int] = defaultdict(int)
        self.for_groups: defaultdict[str, int] = defaultdict(int)
        self.for_connections: defaultdict[str, int] = defaultdict(int)
        self._except_users: defaultdict[str, int] = defaultdict(int)
        self._except_connections: defaultdict[str, int] = defaultdict(int)
        for index, audience in enumerate(audiences):
            bit = 1 << index
            match audience.kind:
                case AudienceKind.ALL:
                    self.for_all |= bit
                case AudienceKind.USERS:
                    _add_bit(self.for_users, audience.names, bit)
                case AudienceKind.CONNECTIONS:
                    _add_bit(self.for_connections, audience.names, bit)
                case AudienceKind.GROUPS:
                    _add_bit(self.for_groups, audience.names, bit)
            _add_bit(self._except_users, audience.except_users, bit)
            _add_bit(self._except_connections, audience.except_connections, bit)

    def of_groups(self, groups: Iterable[str]) -> int:
        """Return the selection for a member of `groups`, before exceptions."""
        return reduce(or_, (self.for_groups.get(group, 0) for group in groups), 0)

    def select(self, user_id: str, connection_id: str, by_groups: int) -> int:
        """Return the selection for a connection.

        Args:
            user_id: The connection's user.
            connection_id: Its id.
            by_groups: The selection for its groups, from `of_groups`.
        """
        included = (
            self.for_all
            | by_groups
            | self.for_users.get(user_id, 0)
            | self.for_connections.get(connection_id, 0)
        )
        excepted = self._except_users.get(user_id, 0) | self._except_connections.get(
            connection_id, 0
        )
        return included & ~excepted


def _add_bit(selections: defaultdict[str, int], names: Iterable[str], bit: int) -> None:
    for name in names:
        selections[name] |= bit
