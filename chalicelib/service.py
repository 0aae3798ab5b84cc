"""Herald, wired: what needs AWS, made once for an execution environment."""

import time

from chalicelib.access import AccessRules
from chalicelib.actions import Actions
from chalicelib.audience import Audiences
from chalicelib.auth import TokenVerifier
from chalicelib.broadcast import Broadcaster
from chalicelib.connections import Connections
from chalicelib.delivery import Delivery, management_client
from chalicelib.handshake import Doorkeeper
from chalicelib.messages import MessageParser
from chalicelib.principal import Principal
from chalicelib.settings import Settings
from chalicelib.storage import dynamodb_client
from chalicelib.ulid import UlidFactory
from chalicelib.users import Users


def now_ms() -> int:
    """The clock: epoch milliseconds."""
    return time.time_ns() // 1_000_000


class Service:
    """The parts that the handlers of `app.py` call, each with what it needs."""

    def __init__(self, settings: Settings, verifier: TokenVerifier, rules: AccessRules) -> None:
        client = dynamodb_client()
        connections_table, users_table = settings.connections_table, settings.users_table
        self._ulids = UlidFactory()
        self.connections = Connections(
            client, connections_table, users_table, settings.max_connections_per_user
        )
        self.users = Users(client, users_table)
        self.delivery = Delivery(management_client, settings.management_endpoint)
        self.broadcaster = Broadcaster(
            Audiences(client, connections_table, users_table),
            self.delivery,
            self.connections,
            now_ms,
        )
        self.actions = Actions(
            self.broadcaster, self.delivery, self.connections, now_ms, self.parser
        )
        self.doorkeeper = Doorkeeper(
            verifier, rules, self.connections, settings.management_endpoint, now_ms
        )

    def parser(self, sender: Principal) -> MessageParser:
        """Parses messages that `sender` sends now."""
        return MessageParser(sender.user_id, now_ms(), self._ulids.new)
