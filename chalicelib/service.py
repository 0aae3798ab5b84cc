"""Herald, wired: what needs AWS, made once for an execution environment."""

import time
from functools import cache, partial

from botocore.session import Session

from chalicelib.access import AccessRules
from chalicelib.actions import Actions
from chalicelib.audience import Audiences
from chalicelib.broadcast import Broadcaster
from chalicelib.connections import Connections
from chalicelib.consequences import Consequences
from chalicelib.delivery import Delivery
from chalicelib.dispatch import Dispatcher
from chalicelib.encryption import Encryption
from chalicelib.fanout import Fanout, Worker
from chalicelib.handshake import Doorkeeper
from chalicelib.history import History
from chalicelib.idempotency import Idempotency
from chalicelib.jobs import Queue
from chalicelib.limits import Limiter, Meter, Rate
from chalicelib.membership import Memberships
from chalicelib.messages import MessageParser
from chalicelib.metrics import Metrics, Unit
from chalicelib.notify import Notifier, Topic
from chalicelib.pace import Pacer
from chalicelib.principal import Principal
from chalicelib.progress import Progress
from chalicelib.records import Tables
from chalicelib.resume import Resumer
from chalicelib.sdk import credentials, sdk_client
from chalicelib.settings import EVICT_OLDEST, FAILS_OPEN, Settings
from chalicelib.storage import check, dynamodb_client
from chalicelib.submissions import Submissions
from chalicelib.sweep import Sweeper, active_connections
from chalicelib.terminate import Terminator
from chalicelib.tokens import Verify
from chalicelib.ulid import Stamp
from chalicelib.users import Users

DEFAULT_REGION = "us-east-1"


def now_ms() -> int:
    """The clock: epoch milliseconds."""
    return time.time_ns() // 1_000_000


class Service:
    """The parts that the handlers of `app.py` call, each with what it needs."""

    def __init__(
        self, settings: Settings, verify: Verify, rules: AccessRules, metrics: Metrics
    ) -> None:
        session = Session()
        region = session.get_config_variable("region") or DEFAULT_REGION
        client = dynamodb_client(session)
        tables = Tables(
            settings.connections_table,
            settings.users_table,
            settings.groups_table,
            settings.messages_table,
            settings.history_table,
        )
        messages = Meter(
            Limiter(
                "messageDue",
                Rate.per_second(settings.message_rate, settings.message_burst),
                settings.daily_message_quota,
            ),
            fails_open=settings.limiter_failure == FAILS_OPEN,
        )
        connects = Meter(Limiter("connectDue", Rate.per_minute(settings.connect_rate)))
        # Whoever connects again resumes: as often, and not more.
        resumes = Meter(Limiter("resumeDue", Rate.per_minute(settings.connect_rate)))
        memberships = Memberships(client, tables, settings.history_seconds)
        self.now = now_ms
        self.encryption = Encryption(settings.encryption_keys)
        self.connections = Connections(
            client,
            tables,
            settings.max_connections_per_user,
            connects,
            messages,
            memberships,
            metrics,
        )
        self.users = Users(client, tables, messages, resumes)
        self.delivery = Delivery(
            credentials(session),
            region,
            settings.management_endpoint,
        )
        audiences = Audiences(client, tables)
        topic = None
        if settings.notify_topic_arn is not None:
            sns = cache(partial(sdk_client, session, "sns"))
            topic = Topic(sns, settings.notify_topic_arn)
        notifier = Notifier(audiences, self.delivery, topic)
        consequences = Consequences(self.connections, self.delivery, notifier, now_ms)
        self.terminator = Terminator(self.connections, self.delivery, now_ms)
        broadcaster = Broadcaster(self.delivery, consequences, self.terminator, metrics)
        self.progress = Progress(client, tables.messages, self.encryption)
        sqs = cache(partial(sdk_client, session, "sqs"))
        self.queue = Queue(sqs, settings.fanout_queue_url or "")
        fanout = Fanout(self.progress, self.queue, partial(active_connections, client, tables))
        self.worker = Worker(
            audiences,
            broadcaster,
            self.progress,
            self.queue,
            Pacer(client, tables.messages, region, settings.fanout_rate),
            self.encryption,
            settings.frame_bytes,
            now_ms,
            metrics,
        )
        history = History(client, tables.history, settings.history_seconds, self.encryption, now_ms)
        dispatcher = Dispatcher(
            audiences,
            broadcaster,
            fanout if settings.fanout_queue_url else None,
            history,
            self.encryption,
            settings.frame_bytes,
            settings.inline_recipients,
            settings.max_connections_per_user,
            metrics,
        )
        self.submissions = Submissions(
            self.parser,
            self.users,
            dispatcher,
            Idempotency(client, tables.messages),
            now_ms,
            metrics,
        )
        self.actions = Actions(
            dispatcher,
            self.delivery,
            self.connections,
            self.terminator,
            Resumer(
                self.users,
                history,
                memberships,
                self.delivery,
                self.encryption,
                settings.frame_bytes,
            ),
            verify,
            now_ms,
            self.parser,
            metrics,
        )
        evicts = settings.connection_limit_policy == EVICT_OLDEST
        self.doorkeeper = Doorkeeper(
            verify,
            rules,
            self.connections,
            consequences,
            self.terminator if evicts else None,
            settings.management_endpoint,
            now_ms,
        )
        self.sweeper = Sweeper(
            client,
            tables,
            self.connections,
            consequences,
            self.terminator,
            settings.stale_after_seconds,
            now_ms,
            partial(metrics.value, "ActiveConnections", unit=Unit.COUNT),
        )
        self.check = partial(check, client, tables)

    def parser(self, sender: Principal, stamp: Stamp) -> MessageParser:
        """Parses what `sender` sends in one request."""
        return MessageParser(sender.user_id, stamp, may_encrypt=self.encryption.available)
