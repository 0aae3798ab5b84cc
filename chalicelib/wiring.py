"""Builds Herald's parts from the settings and the ports to AWS.

The parts stand in the order of the layers: each takes parts of its own section and of those below.
A part is built when it is first used, so that a cold start builds only what the function needs. A
test hands in its own ports, and gets the same `Herald`.
"""

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

from botocore.session import Session

from chalicelib.auth.access import AccessRules
from chalicelib.auth.bearer import Verify
from chalicelib.auth.master_keys import master_keys
from chalicelib.clock import Clock, now_ms
from chalicelib.delivery.broadcast import Broadcaster
from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.frames import Framing
from chalicelib.delivery.notices import Notifier, Topic
from chalicelib.delivery.outcomes import OutcomeRecorder
from chalicelib.delivery.parcel import Delivery
from chalicelib.delivery.sender import Sender
from chalicelib.fanout.charges import FanoutCharges
from chalicelib.fanout.limits import DEFAULT_LIMITS, FanoutLimits
from chalicelib.fanout.progress import Progress
from chalicelib.fanout.publisher import FanoutPublisher
from chalicelib.fanout.queue import Queue
from chalicelib.fanout.rate import FanoutRateLimiter
from chalicelib.fanout.worker import Worker
from chalicelib.messaging.dispatch import Dispatcher
from chalicelib.messaging.resume import Resumer
from chalicelib.messaging.submissions import Submissions
from chalicelib.protocol.cost import COPIES_PER_UNIT
from chalicelib.protocol.encryption import Encryption
from chalicelib.rest.health import HealthCheck
from chalicelib.rest.user_connections import UserConnections
from chalicelib.runtime.aws import credentials, sdk_client
from chalicelib.runtime.metrics import Metrics
from chalicelib.settings import ConnectionLimitPolicy, LimiterFailure, Settings
from chalicelib.store.activity import ActivityRecorder
from chalicelib.store.audience import Audiences
from chalicelib.store.connections import Connections
from chalicelib.store.dynamodb import Store, dynamodb_client
from chalicelib.store.handshakes import Handshakes
from chalicelib.store.history import History
from chalicelib.store.idempotency import Idempotency
from chalicelib.store.memberships import Memberships
from chalicelib.store.paced_writes import WriteLimits
from chalicelib.store.rate_limits import Rate, RateLimit, UserRateLimiter
from chalicelib.store.schema import (
    CONNECT_RATE_ATTRIBUTE,
    MESSAGE_RATE_ATTRIBUTE,
    READ_RATE_ATTRIBUTE,
    RESUME_RATE_ATTRIBUTE,
    ROSTER_SHARDS,
    Tables,
)
from chalicelib.store.sweep_progress import SweepProgress
from chalicelib.store.users import Users
from chalicelib.websocket.actions import Actions
from chalicelib.websocket.lifecycle import ConnectionLifecycle
from chalicelib.websocket.sweep import Sweeper

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient
    from mypy_boto3_sns.client import SNSClient
    from mypy_boto3_sqs.client import SQSClient

DEFAULT_REGION = "us-east-1"
WRITERS = 8


class Herald:
    """The parts of Herald, in one execution environment."""

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
        writers: Executor,
        readers: Executor,
        now: Clock = now_ms,
        fanout_limits: FanoutLimits = DEFAULT_LIMITS,
    ) -> None:
        """Take the ports.

        Args:
            sqs, sns: Return a client; called when one is first needed, as few requests need it.
            region: Where this function runs; each region has its own fan-out rate.
            writers: Runs writes in threads, shared by the parts that write beside a delivery.
            readers: Runs the reads of a roster's shards side by side. They have threads of their
                own: where many connections are gone, writes keep the writers busy for long.
            fanout_limits: The sizes of shards, slices and pages.
        """
        self.delivery = delivery
        self.metrics = metrics
        self.now = now
        self._settings = settings
        self._fanout_limits = fanout_limits
        self._sqs = sqs
        self._sns = sns
        self._region = region
        self._verify = verify
        self._rules = rules
        self._writers = writers
        self._readers = readers
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
        """Create Herald with ports to AWS, as botocore is configured.

        Raises Unavailable if the configuration is not usable.
        """
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
            writers=ThreadPoolExecutor(WRITERS, thread_name_prefix="writer"),
            readers=ThreadPoolExecutor(ROSTER_SHARDS, thread_name_prefix="reader"),
        )

    # --- websocket, rest: what the handlers of `app.py` call

    @cached_property
    def lifecycle(self) -> ConnectionLifecycle:
        evicts = self._settings.connection_limit_policy == ConnectionLimitPolicy.EVICT_OLDEST
        return ConnectionLifecycle(
            verify=self._verify,
            rules=self._rules,
            handshakes=self.handshakes,
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
            activity=self.activity,
            disconnector=self.disconnector,
            resumer=self._resumer,
            resume_limiter=self._resume_limiter,
            verify=self._verify,
            now=self.now,
            may_encrypt=self.encryption.available,
            metrics=self.metrics,
        )

    @cached_property
    def sweeper(self) -> Sweeper:
        return Sweeper(
            self._store,
            progress=self._sweep_progress,
            connections=self.connections,
            outcome_recorder=self._outcome_recorder,
            disconnector=self.disconnector,
            stale_after_seconds=self._settings.stale_after_seconds,
            metrics=self.metrics,
            writers=self._writers,
            now=self.now,
        )

    @cached_property
    def user_connections(self) -> UserConnections:
        return UserConnections(
            users=self.users,
            connections=self.connections,
            disconnector=self.disconnector,
            stale_after_seconds=self._settings.stale_after_seconds,
            now=self.now,
        )

    @cached_property
    def health(self) -> HealthCheck:
        return HealthCheck(self._store.check)

    # --- messaging

    @cached_property
    def submissions(self) -> Submissions:
        return Submissions(
            users=self.users,
            dispatcher=self.dispatcher,
            idempotency=Idempotency(self._store),
            may_encrypt=self.encryption.available,
            now=self.now,
            metrics=self.metrics,
        )

    @cached_property
    def dispatcher(self) -> Dispatcher:
        settings = self._settings
        return Dispatcher(
            audiences=self._audiences,
            broadcaster=self._broadcaster,
            publisher=self._publisher if settings.fanout_queue_url else None,
            history=self.history,
            users=self.users,
            framing=self._framing,
            rate_limiter=self._rate_limiter,
            inline_frames=settings.inline_recipients,
            connections_per_user=settings.max_connections_per_user,
            now=self.now,
            metrics=self.metrics,
        )

    @cached_property
    def _resumer(self) -> Resumer:
        return Resumer(
            history=self.history,
            memberships=self._memberships,
            delivery=self.delivery,
            framing=self._framing,
        )

    # --- fanout

    @cached_property
    def worker(self) -> Worker:
        return Worker(
            audiences=self._audiences,
            broadcaster=self._broadcaster,
            progress=self.progress,
            queue=self.queue,
            rate_limiter=self._rate_limiter,
            charges=FanoutCharges(self.users.owe, now=self.now),
            framing=self._framing,
            now=self.now,
            metrics=self.metrics,
            limits=self._fanout_limits,
        )

    @cached_property
    def _rate_limiter(self) -> FanoutRateLimiter:
        return FanoutRateLimiter(
            self._store, region=self._region, per_second=self._settings.fanout_rate
        )

    @cached_property
    def queue(self) -> Queue:
        return Queue(self._sqs, self._settings.fanout_queue_url or "")

    @cached_property
    def progress(self) -> Progress:
        return Progress(self._store, self.encryption)

    @cached_property
    def _publisher(self) -> FanoutPublisher:
        return FanoutPublisher(
            progress=self.progress,
            queue=self.queue,
            active_connections=self.active_connections,
            limits=self._fanout_limits,
        )

    # --- delivery

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
            disconnector=self.disconnector,
            notifier=notifier,
            writers=self._writers,
            now=self.now,
        )

    @cached_property
    def disconnector(self) -> Disconnector:
        return Disconnector(
            connections=self.connections,
            delivery=self.delivery,
            writers=self._writers,
            now=self.now,
        )

    @cached_property
    def _framing(self) -> Framing:
        return Framing(self._settings.frame_bytes, self.encryption)

    # --- store

    @cached_property
    def handshakes(self) -> Handshakes:
        settings = self._settings
        return Handshakes(
            self._store,
            limit=settings.max_connections_per_user,
            limiter=UserRateLimiter(
                RateLimit(CONNECT_RATE_ATTRIBUTE, Rate.per_minute(settings.connect_rate))
            ),
            now=self.now,
        )

    @cached_property
    def activity(self) -> ActivityRecorder:
        return ActivityRecorder(self._store, message_limiter=self._message_limiter)

    @cached_property
    def connections(self) -> Connections:
        return Connections(
            self._store,
            handshakes=self.handshakes,
            activity=self.activity,
            memberships=self._memberships,
            metrics=self.metrics,
        )

    @cached_property
    def users(self) -> Users:
        settings = self._settings
        reads = Rate.per_second(settings.read_rate, settings.read_burst)
        return Users(
            self._store,
            message_limiter=self._message_limiter,
            read_limiter=UserRateLimiter(RateLimit(READ_RATE_ATTRIBUTE, reads)),
        )

    @cached_property
    def history(self) -> History:
        return History(
            self._store,
            seconds=self._settings.history_seconds,
            encryption=self.encryption,
            writers=self._writers,
            now=self.now,
            limits=self._write_limits(),
        )

    def _write_limits(self) -> WriteLimits:
        """Return the budget of a request's history: what its sender's rate or burst pays for."""
        settings, limits = self._settings, WriteLimits()
        units = max(settings.message_rate, settings.message_burst / limits.large_seconds)
        return limits._replace(copies_per_second=units * COPIES_PER_UNIT)

    @cached_property
    def _audiences(self) -> Audiences:
        return Audiences(self._store, self._readers)

    @cached_property
    def _memberships(self) -> Memberships:
        return Memberships(self._store, seconds=self._settings.history_seconds)

    @cached_property
    def _sweep_progress(self) -> SweepProgress:
        return SweepProgress(self._store, now=self.now)

    def active_connections(self) -> int | None:
        """Return how many connections the last sweep counted; None before the first one."""
        return self._sweep_progress.active_connections()

    @cached_property
    def _message_limiter(self) -> UserRateLimiter:
        settings = self._settings
        rate = Rate.per_second(settings.message_rate, settings.message_burst)
        return UserRateLimiter(
            RateLimit(MESSAGE_RATE_ATTRIBUTE, rate, settings.daily_message_quota),
            fails_open=settings.limiter_failure == LimiterFailure.OPEN,
        )

    @cached_property
    def _resume_limiter(self) -> UserRateLimiter:
        # A client resumes once for each time that it connects, so one rate serves both.
        rate = Rate.per_minute(self._settings.connect_rate)
        return UserRateLimiter(RateLimit(RESUME_RATE_ATTRIBUTE, rate))

    # --- protocol

    @cached_property
    def encryption(self) -> Encryption:
        return Encryption(master_keys(self._settings))
