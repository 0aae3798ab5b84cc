"""The guard before the emulator, which itself would answer any web page of the developer's browser.

The emulator checks no signature, allows every origin, and has endpoints that change its
configuration and delete its data. The guard lets only those requests pass that are signed with this
gateway's credentials and name this machine. It runs in the emulator's process, so that calls take
no detour.
"""

import json
import re
from xml.sax.saxutils import escape

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.aws.signatures import Credentials, SignatureError, SignatureVerifier
from gateway.local_hosts import LocalHosts, refusal_text

CURE = (
    "These services accept only the credentials of the gateway that runs them:"
    " AWS_CONFIG_FILE=.herald/aws.config. The SDK prefers others, so unset AWS_ACCESS_KEY_ID and"
    " AWS_PROFILE, and if ~/.aws/credentials exists,"
    " set AWS_SHARED_CREDENTIALS_FILE=.herald/aws.config, too."
)
"""The remedy for a wrong signature, unless the clock is wrong."""
FORBIDDEN = "AccessDeniedException"

_own_endpoint = re.compile(r"/_|/health$").match


class Guard:
    """An ASGI app that passes on to another one what is signed and names one of the hosts."""

    def __init__(self, app: ASGIApp, credentials: Credentials, hosts: LocalHosts) -> None:
        self._app = app
        self._hosts = hosts
        self._verifier = SignatureVerifier(credentials)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Implement ASGI."""
        if scope["type"] == "http":
            await self._respond(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        else:  # none of the services has WebSockets
            await send({"type": "websocket.close"})

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = self._hosts.foreign(scope)
        if host is not None:
            refusal = _refusal(scope, FORBIDDEN, refusal_text(host, scope))
            await refusal(scope, receive, send)
            return
        try:
            authorization = self._verifier.authorization(scope)
            body = await _read(receive)
            self._verifier.verify(authorization, scope, body)
        except SignatureError as error:
            refusal = _refusal(scope, error.error_type, f"{error} {CURE}")
            await refusal(scope, receive, send)
            return
        if _own_endpoint(scope["path"]):
            refusal = _refusal(scope, FORBIDDEN, "The gateway offers no such endpoint.")
            await refusal(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), _without_cors(send))


async def _read(receive: Receive) -> bytes:
    """Return the body, or what came of it before the client left; then the signature is wrong."""
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that begins with the body that has been read."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _without_cors(send: Send) -> Send:
    """Return a `send` without the headers that would let other origins read an answer."""

    async def filtered(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                header
                for header in message["headers"]
                if not header[0].lower().startswith(b"access-control-")
            ]
        await send(message)

    return filtered


def _refusal(scope: Scope, error_type: str, message: str) -> Response:
    """Return 403 with an error in the format that the SDK expects of the service."""
    content_type = Headers(scope=scope).get("content-type", "")
    if content_type.startswith("application/x-www-form-urlencoded"):
        media_type = "text/xml"
        body = (
            f"<ErrorResponse><Error><Type>Sender</Type><Code>{error_type}</Code>"
            f"<Message>{escape(message)}</Message></Error></ErrorResponse>"
        )
    else:
        media_type = "application/x-amz-json-1.0"
        body = json.dumps({"__type": error_type, "message": message})
    headers = {"x-amzn-ErrorType": error_type, "X-Content-Type-Options": "nosniff"}
    return Response(body, 403, headers, media_type)
