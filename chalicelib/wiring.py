"""Herald, wired: what needs AWS, made once for an execution environment."""

import time
from functools import cache, partial

from botocore.session import Session

from chalicelib.auth.access import AccessRules
from chalicelib.auth.bearer import Verify
from chalicelib.auth.principal import Principal
from chalicelib.delivery.broadcast import Broadcaster
from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.notices import Notifier, Topic
from chalicelib.delivery.outcomes import OutcomeRecorder
from chalicelib.delivery.sender import Delivery
from chalicelib.fanout.progress import Progress
from chalicelib.fanout.queue import Queue
from chalicelib.fanout.rate import FanoutRateLimiter
from chalicelib.fanout.worker import Fanout, Worker
from chalicelib.messaging.dispatch import Dispatcher
from chalicelib.messaging.resume import Resumer
from chalicelib.messaging.submissions import Submissions
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import MessageParser
from chalicelib.protocol.ulid import Stamp
from chalicelib.runtime.aws import credentials, sdk_client
from chalicelib.runtime.metrics import Metrics, Unit
from chalicelib.settings import EVICT_OLDEST, FAILS_OPEN, Settings
from chalicelib.store.audience import Audiences
from chalicelib.store.connections import Connections
from chalicelib.store.dynamodb import check, dynamodb_client
from chalicelib.store.history import History
from chalicelib.store.idempotency import Idempotency
from chalicelib.store.items import Tables
from chalicelib.store.memberships import Memberships
from chalicelib.store.rate_limits import Limiter, Meter, Rate
from chalicelib.store.users import Users
from chalicelib.websocket.actions import Actions
from chalicelib.websocket.lifecycle import ConnectionLifecycle
from chalicelib.websocket.sweep import Sweeper, active_connections

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
        outcome_recorder = OutcomeRecorder(self.connections, self.delivery, notifier, now_ms)
        self.disconnector = Disconnector(self.connections, self.delivery, now_ms)
        broadcaster = Broadcaster(self.delivery, outcome_recorder, self.disconnector, metrics)
        self.progress = Progress(client, tables.messages, self.encryption)
        sqs = cache(partial(sdk_client, session, "sqs"))
        self.queue = Queue(sqs, settings.fanout_queue_url or "")
        fanout = Fanout(self.progress, self.queue, partial(active_connections, client, tables))
        self.worker = Worker(
            audiences,
            broadcaster,
            self.progress,
            self.queue,
            FanoutRateLimiter(client, tables.messages, region, settings.fanout_rate),
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
            self.disconnector,
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
        self.lifecycle = ConnectionLifecycle(
            verify,
            rules,
            self.connections,
            outcome_recorder,
            self.disconnector if evicts else None,
            settings.management_endpoint,
            now_ms,
        )
        self.sweeper = Sweeper(
            client,
            tables,
            self.connections,
            outcome_recorder,
            self.disconnector,
            settings.stale_after_seconds,
            now_ms,
            partial(metrics.value, "ActiveConnections", unit=Unit.COUNT),
        )
        self.check = partial(check, client, tables)

    def parser(self, sender: Principal, stamp: Stamp) -> MessageParser:
        """Parses what `sender` sends in one request."""
        return MessageParser(sender.user_id, stamp, may_encrypt=self.encryption.available)
