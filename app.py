"""Herald's Lambda functions: routes and triggers. Each hands its event to a part of `chalicelib`.

To follow one, go to the definition of what it calls:

    a POST       post_messages    Submissions.submit → Dispatcher.send → Broadcaster.send → Sender
    a frame      on_ws_message    Actions.receive → an action, such as Dispatcher.send → Sender
    a handshake  on_ws_connect    ConnectionLifecycle.on_connect → Handshakes.open
    a job        deliver_queued   Worker.work → Broadcaster.send → Sender
    the sweep    sweep            Sweeper.sweep → Disconnector, OutcomeRecorder → Sender

`chalicelib/wiring.py` builds these parts. `Sender` posts to the sockets through `@connections`.
"""

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from chalice.app import (
    AuthRequest,
    AuthResponse,
    Chalice,
    CloudWatchEvent,
    CORSConfig,
    Rate,
    Request,
    SQSEvent,
)
from chalice.app import WebsocketEvent as ChaliceEvent

from chalicelib import aws_limits
from chalicelib.auth import authorizers
from chalicelib.auth.access import AccessRules
from chalicelib.auth.bearer import bearer_token
from chalicelib.auth.principal import Principal, Scope
from chalicelib.errors import ANSWERS, Forbidden, HeraldError, Unauthorized, Unavailable
from chalicelib.protocol.reports import Reply
from chalicelib.rest.requests import RestRequest, path_name
from chalicelib.rest.responses import answering
from chalicelib.runtime import startup
from chalicelib.runtime.deadlines import answer_deadline, work_deadline
from chalicelib.runtime.logs import RefusalLog, attribute_address, configure_logging, correlated
from chalicelib.runtime.metrics import Metrics
from chalicelib.settings import RESERVED, Settings
from chalicelib.stage import stage_defaults
from chalicelib.websocket.event import WebSocketEvent, authenticate

if TYPE_CHECKING:
    from chalicelib.auth.verifier import TokenVerifier
    from chalicelib.wiring import Herald

if "AWS_CHALICE_CLI_MODE" in os.environ and find_spec("infra"):  # never on Lambda
    from infra import chalice_cli

    chalice_cli.prepare(os.environ)

ANY_CONTENT_TYPE = ["*/*"]  # accept any type here; we answer 415 ourselves, as problem+json
REGION = os.environ.get("AWS_REGION")

app = Chalice(app_name="herald")
app.experimental_feature_flags.update(["WEBSOCKETS"])
# Let pages of any origin call: the token decides what they may do, and `HERALD_ALLOWED_ORIGINS` is
# checked for each request. Browsers add no credentials, such as cookies, by themselves.
app.api.cors = CORSConfig(
    allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
    expose_headers=["Idempotent-Replayed", "Retry-After", "x-amzn-RequestId"],
    max_age=600,
)

configure_logging()
logger = logging.getLogger("herald.app")
refusals = RefusalLog(logger)
settings = Settings.from_environ(os.environ, stage_defaults(os.environ))
if settings.jwks_url is not None and settings.jwt_audience is None:  # RFC 8725 section 3.9
    logger.warning(
        "HERALD_JWKS_URL is set without HERALD_JWT_AUDIENCE:"
        " tokens that its provider issues for other applications are accepted"
    )
for variable in sorted(RESERVED & os.environ.keys()):
    logger.warning("%s is set, but has no effect in this version of Herald", variable)
metrics = Metrics(settings.stage)
rules = AccessRules(settings)


@cache
def verifier() -> "TokenVerifier":
    """Create the verifier lazily: most functions never need it, which shortens their cold start."""
    with startup.gc_frozen():
        from chalicelib.auth.verifier import TokenVerifier

        return TokenVerifier(settings)


def verify(token: str) -> Principal:
    """Return the principal whom a token names. Raises Unauthorized, Unavailable."""
    return verifier().verify(token)


@cache
def herald() -> "Herald":
    """Create Herald lazily: the authorizers never need it, which shortens their cold start."""
    with startup.gc_frozen():
        from chalicelib.wiring import Herald

        return Herald.on_aws(settings, verify=verify, rules=rules, metrics=metrics)


def charge_read(reader: Principal) -> None:
    """Charge the caller of a route that sends nothing. Raises RateLimited, Unavailable."""
    herald().users.charge_read(reader, herald().now())


answers = answering(app, rules, charge_read)


@app.middleware("all")
def observed(event: Any, get_response: Callable[[Any], Any]) -> Any:
    """Correlate the logs of an invocation, and write its metrics.

    Chalice calls it around every function but the REST authorizer.
    """
    raw = event.context if isinstance(event, Request) else event.to_dict().get("requestContext", {})
    with correlated(raw.get("requestId")):
        try:
            return get_response(event)
        finally:
            metrics.flush()


# --- Authorizers


@app.authorizer()
def rest_authorizer(request: AuthRequest) -> AuthResponse:
    """Identify the caller. The routes check what the caller may do, since it depends on the path.

    API Gateway reuses the policy for other requests with the same token, so it names every route
    that needs a token. Raises Unavailable, which API Gateway answers with 500, if the keys can't
    be fetched.
    """
    try:
        principal = verify(bearer_token(request.token))
    except Unauthorized:
        raise authorizers.unauthorized() from None
    except Exception:
        metrics.count("AuthorizerErrors")
        raise
    finally:
        metrics.flush()
    return AuthResponse(authorizers.routes(app), principal.user_id, principal.to_context())


@app.lambda_function()
def connect_authorizer(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Authorize a handshake. The deployment attaches this to `$connect` as REQUEST authorizer."""
    handshake = WebSocketEvent(event)
    attribute_address(handshake.source_ip)
    try:
        principal = authenticate(handshake, verify)
    except Unauthorized as error:
        refusals.add("handshake", error)
        metrics.count("ConnectionsRejected", Reason=error.code)
        raise authorizers.unauthorized() from None
    except Forbidden as error:
        refusals.add("handshake", error)
        metrics.count("ConnectionsRejected", Reason=error.code)
        return authorizers.deny(event["methodArn"])
    except Exception:
        metrics.count("AuthorizerErrors")
        raise
    return authorizers.allow(event["methodArn"], principal)


# --- WebSocket


@app.on_ws_connect()
def on_ws_connect(event: ChaliceEvent) -> dict[str, Any]:
    """Let a client connect, or refuse its handshake."""
    try:
        subprotocol = herald().lifecycle.on_connect(WebSocketEvent(event.to_dict(), REGION))
    except HeraldError as error:
        refusals.add("handshake", error)
        metrics.count("ConnectionsRejected", Reason=error.code)
        return {"statusCode": ANSWERS[error.code].status}
    metrics.count("ConnectionsOpened")
    headers = {"Sec-WebSocket-Protocol": subprotocol} if subprotocol else {}
    return {"statusCode": 200, "headers": headers}


@app.on_ws_message()
def on_ws_message(event: ChaliceEvent) -> None:
    """Carry out a client's frame, and answer it over the socket."""
    message = WebSocketEvent(event.to_dict(), REGION)
    herald().actions.receive(message, answer_deadline(event.context))


@app.on_ws_disconnect()
def on_ws_disconnect(event: ChaliceEvent) -> None:
    """Remove a connection. API Gateway does not repeat the event: the sweep repairs a failure."""
    try:
        herald().lifecycle.on_disconnect(WebSocketEvent(event.to_dict(), REGION))
    except Unavailable as error:
        logger.error("the sweep has to remove a connection: %s", error.detail)


# --- Schedule and queue


@app.schedule(Rate(10, unit=Rate.MINUTES))
def sweep(event: CloudWatchEvent) -> None:
    """Find dead, stale and expired connections."""
    try:
        herald().sweeper.sweep(work_deadline(event.context))
    except Unavailable as error:
        logger.error("the next sweep has to continue this one: %s", error.detail)


def deliver_queued(event: SQSEvent) -> None:
    """Carry out a batch of fan-out jobs. Raises if any failed: SQS delivers those again."""
    records = event.to_dict()["Records"]
    herald().queue.settle(records, herald().worker.work(records, work_deadline(event.context)))


if settings.fanout_queue_name is not None:
    deliver_queued = app.on_sqs_message(
        queue=settings.fanout_queue_name,
        batch_size=aws_limits.SQS_BATCH,  # jobs for the same recipients are done together
        maximum_batching_window_in_seconds=settings.fanout_batch_seconds,
    )(deliver_queued)


# --- REST


@app.route(
    "/messages", methods=["POST"], authorizer=rest_authorizer, content_types=ANY_CONTENT_TYPE
)
@answers
def post_messages(request: RestRequest) -> Reply:
    """Send messages, or queue them."""
    sender = request.caller()
    return herald().submissions.submit(sender, request.headers, request.body, request.deadline)


@app.route("/messages/{message_id}", methods=["GET"], authorizer=rest_authorizer)
@answers
def get_message(request: RestRequest, message_id: str) -> dict[str, object]:
    """Return how far the delivery of a queued message is."""
    reader = request.reader()
    message_id = path_name("messageId", message_id)
    return herald().progress.of(message_id, reader, herald().now())


@app.route("/users/{user_id}", methods=["GET"], authorizer=rest_authorizer)
@answers
def get_user(request: RestRequest, user_id: str) -> dict[str, object]:
    """Return a user's presence."""
    owner = request.owner(user_id, Scope.USERS_READ)
    return herald().users.presence(*owner).to_dict()


@app.route("/users/{user_id}/connections", methods=["GET"], authorizer=rest_authorizer)
@answers
def get_connections(request: RestRequest, user_id: str) -> dict[str, object]:
    """List a user's connections."""
    owner = request.owner(user_id, Scope.CONNECTIONS_MANAGE)
    return herald().user_connections.list_all(*owner)


@app.route("/users/{user_id}/connections", methods=["DELETE"], authorizer=rest_authorizer)
@answers
def delete_connections(request: RestRequest, user_id: str) -> None:
    """Close a user's connections."""
    owner = request.owner(user_id, Scope.CONNECTIONS_MANAGE)
    herald().user_connections.close_all(*owner, request.deadline)


@app.route(
    "/users/{user_id}/connections/{connection_id}", methods=["DELETE"], authorizer=rest_authorizer
)
@answers
def delete_connection(request: RestRequest, user_id: str, connection_id: str) -> None:
    """Close one of a user's connections.

    Answers 204 whether the connection is missing or someone else's, so that ids can't be probed.
    """
    owner = request.owner(user_id, Scope.CONNECTIONS_MANAGE)
    connection_id = path_name("connectionId", connection_id)
    herald().user_connections.close_one(*owner, connection_id, request.deadline)


@app.route("/keys", methods=["GET"], authorizer=rest_authorizer)
@answers
def get_keys(request: RestRequest) -> dict[str, object]:
    """Return the keys that decrypt the caller's messages."""
    reader = request.reader()
    return {"keys": herald().encryption.keys_of(reader.key)}


@app.route("/health", methods=["GET"])
@answers
def get_health(request: RestRequest) -> dict[str, object]:
    """Say whether storage can be reached, or could a few seconds ago."""
    herald().health.require()
    return {"status": "ok"}
