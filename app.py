"""Herald's Lambda entry points: what is called when. What happens then is in `chalicelib`."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from chalice.app import (
    AuthRequest,
    AuthResponse,
    Chalice,
    CloudWatchEvent,
    CORSConfig,
    Rate,
    Request,
    Response,
    SQSEvent,
)
from chalice.app import WebsocketEvent as ChaliceEvent

from chalicelib import aws_limits
from chalicelib.auth import authorizers
from chalicelib.auth.access import AccessRules
from chalicelib.auth.bearer import bearer_token
from chalicelib.auth.principal import Principal, Scope, user_key
from chalicelib.errors import ANSWERS, Forbidden, HeraldError, Unauthorized, Unavailable
from chalicelib.protocol.messages import parse_name
from chalicelib.protocol.reports import Reply
from chalicelib.protocol.strict_json import encode
from chalicelib.rest import responses
from chalicelib.runtime import startup
from chalicelib.runtime.logs import configure_logging, correlated
from chalicelib.runtime.metrics import Metrics
from chalicelib.settings import RESERVED, Settings
from chalicelib.stage import stage_defaults
from chalicelib.store.items import Connection
from chalicelib.websocket.event import WebSocketEvent, authenticate

if TYPE_CHECKING:
    from chalicelib.auth.verifier import TokenVerifier
    from chalicelib.wiring import Herald

if "AWS_CHALICE_CLI_MODE" in os.environ and find_spec("infra"):  # never on Lambda
    from infra import chalice_cli

    chalice_cli.prepare(os.environ)

JSON_HEADERS: responses.Headers = {**responses.SAFE_HEADERS, "Content-Type": "application/json"}
REPLAY_HEADERS: responses.Headers = {**JSON_HEADERS, "Idempotent-Replayed": "true"}
ANY_CONTENT_TYPE = ["*/*"]  # ours to refuse: Chalice's 415 is no problem+json
REGION = os.environ.get("AWS_REGION")

app = Chalice(app_name="herald")
app.experimental_feature_flags.update(["WEBSOCKETS"])
# Any page may ask: what it may do depends on the token that it sends, and `caller` asks for its
# origin. Nothing is sent along by the browser itself, such as a cookie.
app.api.cors = CORSConfig(
    allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
    expose_headers=["Idempotent-Replayed", "Retry-After", "x-amzn-RequestId"],
    max_age=600,
)

configure_logging()
logger = logging.getLogger("herald.app")
settings = Settings.from_environ(os.environ, stage_defaults(os.environ))
if settings.jwks_url is not None and settings.jwt_audience is None:  # RFC 8725 section 3.9
    logger.warning(
        "HERALD_JWKS_URL is set without HERALD_JWT_AUDIENCE:"
        " tokens that its provider makes for other applications are accepted"
    )
for variable in sorted(RESERVED & os.environ.keys()):
    logger.warning("%s is set, but has no effect in this version of Herald", variable)
metrics = Metrics(settings.stage)
rules = AccessRules(settings)


@cache
def verifier() -> "TokenVerifier":
    """Create the verifier lazily: most functions never need one, and start faster without."""
    with startup.gc_frozen():
        from chalicelib.auth.verifier import TokenVerifier

        return TokenVerifier(settings)


def verify(token: str) -> Principal:
    """Whom a token names. Raises Unauthorized, Unavailable."""
    return verifier().verify(token)


@cache
def herald() -> "Herald":
    """Create Herald lazily: the authorizers never need it, which keeps their cold start short."""
    with startup.gc_frozen():
        from chalicelib.wiring import Herald

        return Herald.on_aws(settings, verify=verify, rules=rules, metrics=metrics)


@app.middleware("all")
def observed(event: Any, get_response: Callable[[Any], Any]) -> Any:
    """Around every function but the REST authorizer, whose calls Chalice leaves out."""
    raw = event.context if isinstance(event, Request) else event.to_dict().get("requestContext", {})
    with correlated(raw.get("requestId")):
        try:
            return get_response(event)
        finally:
            metrics.flush()


# --- Authorizers


@app.authorizer()
def rest_authorizer(request: AuthRequest) -> AuthResponse:
    """Who is calling. What they may do depends on the request, so the routes check it.

    API Gateway reuses the policy for the token's other requests, so it names every route that a
    token is needed for; and none that there isn't. Keys that can't be had are 500, by raising.
    """
    try:
        principal = verify(bearer_token(request.token))
    except Unauthorized:
        raise authorizers.unauthorized() from None
    return AuthResponse(authorizers.routes(app), principal.user_id, principal.to_context())


@app.lambda_function()
def connect_authorizer(event: dict[str, Any], context: object) -> dict[str, Any]:
    """The REQUEST authorizer of `$connect`; the deployment attaches it."""
    try:
        principal = authenticate(WebSocketEvent(event), verify)
    except Unauthorized as error:
        metrics.count("ConnectionsRejected", Reason=error.code)
        raise authorizers.unauthorized() from None
    except Forbidden as error:
        metrics.count("ConnectionsRejected", Reason=error.code)
        return authorizers.deny(event["methodArn"])
    return authorizers.allow(event["methodArn"], principal)


# --- WebSocket


@app.on_ws_connect()
def on_ws_connect(event: ChaliceEvent) -> dict[str, Any]:
    try:
        subprotocol = herald().lifecycle.on_connect(WebSocketEvent(event.to_dict(), REGION))
    except HeraldError as error:
        logger.info("handshake refused: %s", error.detail)
        metrics.count("ConnectionsRejected", Reason=error.code)
        return {"statusCode": ANSWERS[error.code].status}
    metrics.count("ConnectionsOpened")
    headers = {"Sec-WebSocket-Protocol": subprotocol} if subprotocol else {}
    return {"statusCode": 200, "headers": headers}


@app.on_ws_message()
def on_ws_message(event: ChaliceEvent) -> None:
    herald().actions.receive(WebSocketEvent(event.to_dict(), REGION), deadline(event.context))


@app.on_ws_disconnect()
def on_ws_disconnect(event: ChaliceEvent) -> None:
    try:
        herald().lifecycle.on_disconnect(WebSocketEvent(event.to_dict(), REGION))
    except Unavailable as error:  # API Gateway tells it once: it is as if it had been lost
        logger.error("a connection is left to the sweep: %s", error.detail)


# --- Schedule


@app.schedule(Rate(1, unit=Rate.MINUTES))
def sweep(event: CloudWatchEvent) -> None:
    try:
        herald().sweeper.sweep(end(event.context))
    except Unavailable as error:
        logger.error("the sweep is left to the next: %s", error.detail)


# --- Queue


def deliver_queued(event: SQSEvent) -> None:
    """Do a batch of jobs. Raises where any failed: SQS brings those again."""
    records = event.to_dict()["Records"]
    herald().queue.settle(records, herald().worker.work(records, end(event.context)))


if settings.fanout_queue_name is not None:
    deliver_queued = app.on_sqs_message(
        queue=settings.fanout_queue_name,
        batch_size=aws_limits.SQS_BATCH,
        maximum_batching_window_in_seconds=settings.fanout_batch_seconds,
    )(deliver_queued)


# --- REST


def answering(view: Callable[..., Any]) -> Callable[..., Response]:
    """Answer a view's value as JSON, none as 204, and its errors as problems."""

    @wraps(view)
    def answered(*args: Any, **kwargs: Any) -> Response:
        try:
            value = view(*args, **kwargs)
            if value is None:
                return Response("", responses.SAFE_HEADERS, 204)
            if isinstance(value, Reply):
                headers = REPLAY_HEADERS if value.replayed else JSON_HEADERS
                return Response(value.body.decode(), headers, value.status)
            return Response(encode(value).decode(), JSON_HEADERS)
        except HeraldError as error:
            status, headers, body = responses.problem(error)
        except Exception:
            logger.exception("a route failed")
            status, headers, body = responses.problem(HeraldError("it has been logged"))
        return Response(encode(body).decode(), headers, status)

    return answered


@app.route(
    "/messages", methods=["POST"], authorizer=rest_authorizer, content_types=ANY_CONTENT_TYPE
)
@answering
def post_messages() -> Reply:
    return herald().submissions.submit(
        caller(), request().headers, request().raw_body, deadline(app.lambda_context)
    )


@app.route("/messages/{message_id}", methods=["GET"], authorizer=rest_authorizer)
@answering
def get_message(message_id: str) -> dict[str, object]:
    """How far a queued message has come."""
    reader = caller()
    return herald().progress.of(name("messageId", message_id), reader, herald().now())


@app.route("/users/{user_id}", methods=["GET"], authorizer=rest_authorizer)
@answering
def get_user(user_id: str) -> dict[str, object]:
    tenant, user_id = owner(user_id, Scope.USERS_READ)
    return herald().users.presence(tenant, user_id).to_dict()


@app.route("/users/{user_id}/connections", methods=["GET"], authorizer=rest_authorizer)
@answering
def get_connections(user_id: str) -> dict[str, object]:
    now = herald().now()
    connections = herald().users.presence(*owner(user_id, Scope.CONNECTIONS_MANAGE)).connections
    return {"connections": [one.to_dict(now, settings.stale_after_seconds) for one in connections]}


@app.route("/users/{user_id}/connections", methods=["DELETE"], authorizer=rest_authorizer)
@answering
def delete_connections(user_id: str) -> None:
    close(herald().users.presence(*owner(user_id, Scope.CONNECTIONS_MANAGE)).connections)


@app.route(
    "/users/{user_id}/connections/{connection_id}", methods=["DELETE"], authorizer=rest_authorizer
)
@answering
def delete_connection(user_id: str, connection_id: str) -> None:
    """One that is another's, or doesn't exist, is told apart by nothing."""
    key = user_key(*owner(user_id, Scope.CONNECTIONS_MANAGE))
    connection = herald().connections.find(name("connectionId", connection_id))
    if connection is not None and connection.principal.key == key:
        close([connection])


@app.route("/keys", methods=["GET"], authorizer=rest_authorizer)
@answering
def get_keys() -> dict[str, object]:
    return {"keys": herald().encryption.keys_of(caller().key)}


@app.route("/health", methods=["GET"])
@answering
def get_health() -> dict[str, object]:
    herald().check()
    return {"status": "ok"}


def owner(user_id: str, scope: Scope) -> tuple[str | None, str]:
    """The tenant and the id of the user whom a path names, who is the caller but for `scope`."""
    principal = caller()
    user_id = name("userId", user_id)
    if user_id != principal.user_id:
        principal.require(scope)
    return principal.tenant, user_id


def name(parameter: str, value: str) -> str:
    """A name that a path holds, decoded. Raises BadRequest."""
    return parse_name(parameter, unquote(value))


def close(connections: Sequence[Connection]) -> None:
    """Close connections, within the request's time."""
    recipients = [connection.recipient for connection in connections]
    herald().disconnector.disconnect(recipients, deadline(app.lambda_context))


def caller() -> Principal:
    """Who calls, from where they may. Raises Forbidden, or TokenExpired for a cached verdict."""
    context = request().context
    principal = Principal.from_context(context["authorizer"])
    principal.require_unexpired(time.time())
    rules.check(context["identity"]["sourceIp"], request().headers.get("origin"))
    return principal


def request() -> Request:
    """The request that a route answers; there is one while it runs."""
    assert app.current_request is not None  # noqa: S101
    return app.current_request


def deadline(context: Any) -> float:
    """When delivery must end for the answer to arrive in time, in `time.monotonic` seconds."""
    return min(time.monotonic() + aws_limits.WORK_SECONDS, end(context))


def end(context: Any) -> float:
    """When a function must have done before Lambda ends it, in `time.monotonic` seconds."""
    remaining: float = context.get_remaining_time_in_millis() / 1000
    return time.monotonic() + remaining - aws_limits.ANSWER_RESERVE_SECONDS
