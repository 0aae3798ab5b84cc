"""Herald's parts, put together from the settings and the ports to AWS.

Each part is built at its first use, so that a function pays at its cold start for the parts that it
needs. A test gives its own ports, and gets the same Herald.
"""

import time
from collections.abc import Callable
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

from botocore.session import Session

from chalicelib.auth.access import AccessRules
from chalicelib.auth.bearer import Verify
from chalicelib.auth.principal import Principal
from chalicelib.delivery.broadcast import Broadcaster
from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.notices import Notifier, Topic
from chalicelib.delivery.outcomes import OutcomeRecorder
from chalicelib.delivery.parcel import Delivery
from chalicelib.delivery.sender import Sender
from chalicelib.fanout.progress import Progress
from chalicelib.fanout.publisher import FanoutPublisher
from chalicelib.fanout.queue import Queue
from chalicelib.fanout.rate import FanoutRateLimiter
from chalicelib.fanout.worker import Worker
from chalicelib.messaging.dispatch import Dispatcher
from chalicelib.messaging.resume import Resumer
from chalicelib.messaging.submissions import Submissions
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import MessageParser
from chalicelib.protocol.ulid import Stamp
from chalicelib.runtime.aws import credentials, sdk_client
from chalicelib.runtime.metrics import Metrics, Unit
from chalicelib.settings import ConnectionLimitPolicy, LimiterFailure, Settings
from chalicelib.store.audience import Audiences
from chalicelib.store.connections import Connections
from chalicelib.store.dynamodb import Store, dynamodb_client
from chalicelib.store.history import History
from chalicelib.store.idempotency import Idempotency
from chalicelib.store.items import Tables
from chalicelib.store.memberships import Memberships
from chalicelib.store.rate_limits import Limiter, Meter, Rate
from chalicelib.store.users import Users
from chalicelib.websocket.actions import Actions
from chalicelib.websocket.lifecycle import ConnectionLifecycle
from chalicelib.websocket.sweep import Sweeper, active_connections

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient
    from mypy_boto3_sns.client import SNSClient
    from mypy_boto3_sqs.client import SQSClient

DEFAULT_REGION = "us-east-1"


def now_ms() -> int:
    """Return the time in epoch milliseconds."""
    return time.time_ns() // 1_000_000


class Herald:
    """The parts that the handlers of `app.py` call."""

    def __init__(
        self,
        settings: Settings,
        *,
        dynamodb: "DynamoDBClient",
        delivery: Delivery,
        sqs: Callable[[], "SQSClient"],
        sns: Callable[[], "SNSClient"],
        region: str,
        verify: Verify,
        rules: AccessRules,
        metrics: Metrics,
        now: Callable[[], int] = now_ms,
    ) -> None:
        """Take the ports.

        Args:
            sqs, sns: make a client; called at the first use, since few requests need one.
            region: the region that this function runs in; each has its own fan-out rate.
            now: the clock, in epoch milliseconds.
        """
        self.delivery = delivery
        self.metrics = metrics
        self.now = now
        self._settings = settings
        self._sqs = sqs
        self._sns = sns
        self._region = region
        self._verify = verify
        self._rules = rules
        self._store = Store(
            dynamodb,
            Tables(
                settings.connections_table,
                settings.users_table,
                settings.groups_table,
                settings.messages_table,
                settings.history_table,
            ),
        )

    @classmethod
    def on_aws(
        cls, settings: Settings, *, verify: Verify, rules: AccessRules, metrics: Metrics
    ) -> "Herald":
        """Connect to AWS as botocore is configured. Raises Unavailable where it isn't."""
        session = Session()
        region = session.get_config_variable("region") or DEFAULT_REGION
        return cls(
            settings,
            dynamodb=dynamodb_client(session),
            delivery=Sender(
                credentials(session), region=region, endpoint=settings.management_endpoint
            ),
            sqs=cache(partial(sdk_client, session, "sqs")),
            sns=cache(partial(sdk_client, session, "sns")),
            region=region,
            verify=verify,
            rules=rules,
            metrics=metrics,
        )

    def check(self) -> None:
        """Raise Unavailable unless every table can be read."""
        self._store.check()

    # --- What the handlers call

    @cached_property
    def lifecycle(self) -> ConnectionLifecycle:
        evicts = self._settings.connection_limit_policy == ConnectionLimitPolicy.EVICT_OLDEST
        return ConnectionLifecycle(
            verify=self._verify,
            rules=self._rules,
            connections=self.connections,
            outcome_recorder=self._outcome_recorder,
            disconnector=self.disconnector if evicts else None,
            endpoint=self._settings.management_endpoint,
            now=self.now,
        )

    @cached_property
    def actions(self) -> Actions:
        return Actions(
            dispatcher=self.dispatcher,
            delivery=self.delivery,
            connections=self.connections,
            disconnector=self.disconnector,
            resumer=self._resumer,
            verify=self._verify,
            now=self.now,
            parser=self.parser,
            metrics=self.metrics,
        )

    @cached_property
    def submissions(self) -> Submissions:
        return Submissions(
            parser=self.parser,
            users=self.users,
            dispatcher=self.dispatcher,
            idempotency=Idempotency(self._store),
            now=self.now,
            metrics=self.metrics,
        )

    @cached_property
    def worker(self) -> Worker:
        return Worker(
            audiences=self._audiences,
            broadcaster=self._broadcaster,
            progress=self.progress,
            queue=self.queue,
            rate_limiter=FanoutRateLimiter(
                self._store, region=self._region, per_second=self._settings.fanout_rate
            ),
            encryption=self.encryption,
            frame_bytes=self._settings.frame_bytes,
            now=self.now,
            metrics=self.metrics,
        )

    @cached_property
    def sweeper(self) -> Sweeper:
        return Sweeper(
            self._store,
            connections=self.connections,
            outcome_recorder=self._outcome_recorder,
            disconnector=self.disconnector,
            stale_after_seconds=self._settings.stale_after_seconds,
            now=self.now,
            report=partial(self.metrics.value, "ActiveConnections", unit=Unit.COUNT),
        )

    @cached_property
    def progress(self) -> Progress:
        return Progress(self._store, self.encryption)

    @cached_property
    def queue(self) -> Queue:
        return Queue(self._sqs, self._settings.fanout_queue_url or "")

    @cached_property
    def encryption(self) -> Encryption:
        return Encryption(self._settings.encryption_keys)

    @cached_property
    def connections(self) -> Connections:
        settings = self._settings
        return Connections(
            self._store,
            limit=settings.max_connections_per_user,
            connects=Meter(Limiter("connectDue", Rate.per_minute(settings.connect_rate))),
            messages=self._messages_meter,
            memberships=self._memberships,
            metrics=self.metrics,
        )

    @cached_property
    def users(self) -> Users:
        # A client resumes once for each time that it connects: the same rate does for both.
        resumes = Meter(Limiter("resumeDue", Rate.per_minute(self._settings.connect_rate)))
        return Users(self._store, messages=self._messages_meter, resumes=resumes)

    @cached_property
    def disconnector(self) -> Disconnector:
        return Disconnector(connections=self.connections, delivery=self.delivery, now=self.now)

    # --- What those are made of

    @cached_property
    def dispatcher(self) -> Dispatcher:
        settings = self._settings
        return Dispatcher(
            audiences=self._audiences,
            broadcaster=self._broadcaster,
            publisher=self._publisher if settings.fanout_queue_url else None,
            history=self.history,
            encryption=self.encryption,
            frame_bytes=settings.frame_bytes,
            inline_recipients=settings.inline_recipients,
            connections_per_user=settings.max_connections_per_user,
            metrics=self.metrics,
        )

    @cached_property
    def history(self) -> History:
        return History(
            self._store,
            seconds=self._settings.history_seconds,
            encryption=self.encryption,
            now=self.now,
        )

    @cached_property
    def _publisher(self) -> FanoutPublisher:
        return FanoutPublisher(
            progress=self.progress, queue=self.queue, active_connections=self.active_connections
        )

    @cached_property
    def _resumer(self) -> Resumer:
        return Resumer(
            users=self.users,
            history=self.history,
            memberships=self._memberships,
            delivery=self.delivery,
            encryption=self.encryption,
            frame_bytes=self._settings.frame_bytes,
        )

    @cached_property
    def _broadcaster(self) -> Broadcaster:
        return Broadcaster(
            delivery=self.delivery,
            outcome_recorder=self._outcome_recorder,
            disconnector=self.disconnector,
            metrics=self.metrics,
        )

    @cached_property
    def _outcome_recorder(self) -> OutcomeRecorder:
        arn = self._settings.notify_topic_arn
        notifier = Notifier(
            audiences=self._audiences,
            delivery=self.delivery,
            topic=None if arn is None else Topic(self._sns, arn),
        )
        return OutcomeRecorder(
            connections=self.connections,
            delivery=self.delivery,
            notifier=notifier,
            now=self.now,
        )

    @cached_property
    def _audiences(self) -> Audiences:
        return Audiences(self._store)

    @cached_property
    def _memberships(self) -> Memberships:
        return Memberships(self._store, seconds=self._settings.history_seconds)

    @cached_property
    def _messages_meter(self) -> Meter:
        settings = self._settings
        rate = Rate.per_second(settings.message_rate, settings.message_burst)
        return Meter(
            Limiter("messageDue", rate, settings.daily_message_quota),
            fails_open=settings.limiter_failure == LimiterFailure.OPEN,
        )

    def active_connections(self) -> int | None:
        """Return how many connections the last sweep counted; None before the first one."""
        return active_connections(self._store)

    def parser(self, sender: Principal, stamp: Stamp) -> MessageParser:
        """Return a parser of what `sender` sends in one request."""
        return MessageParser(sender.user_id, stamp, may_encrypt=self.encryption.available)
