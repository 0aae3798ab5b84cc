"""The AWS SDK: clients that fail fast, and credentials.

Herald uses botocore, which boto3 is built on. boto3 would add 30 ms to each cold start, for
features that Herald doesn't use (resources, S3 transfers).
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from botocore import __version__ as botocore_version
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.session import Session

from chalicelib.errors import Unavailable

CLIENT_LIMITS = Config(
    connect_timeout=0.4,
    read_timeout=0.8,
    retries={"mode": "standard", "total_max_attempts": 2},
    max_pool_connections=50,
    user_agent=f"Herald Botocore/{botocore_version}",
)
"""Each call succeeds or fails within 3 s: two attempts of 0.8 s, and up to 1 s between them.

DynamoDB answers in milliseconds, so waiting longer is pointless, while a second attempt on another
socket makes up for a lost packet or a slow server. The SDK's defaults allow a minute for each
attempt, which is longer than API Gateway waits for a handshake or a POST.
https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html

The SDK would put its user agent together twice for each call, in 0.3 ms. It sends a string of our
own as it is.
"""


def sdk_client(session: Session, service: str, region: str | None = None) -> Any:
    """Create a client of `service` with these limits, in `region` or else the session's region.

    Its calls raise NotFromAws, a BotoCoreError, for a response that AWS can't have sent.
    """
    client = session.create_client(service, region, config=CLIENT_LIMITS)
    client.meta.events.register("after-call", _check_origin)
    return client


class Credentials(NamedTuple):
    """The keys that sign a request: long-lived ones, or a role's with their session token."""

    access_key: str
    secret_key: str
    token: str | None = None


class NotFromAws(BotoCoreError):
    """Something between Herald and AWS answered, such as a proxy with an error page of its own.

    The SDK takes a body that it can't read for an empty result, so a write that never happened
    would look like a success.
    """

    fmt = "the response to {operation} did not come from AWS: its type is {content_type}"


def _check_origin(http_response: Any, parsed: Any, model: Any, **_: Any) -> None:
    """Raise NotFromAws for a success whose body no AWS service would send."""
    if http_response.status_code != 200:
        return
    content_type = http_response.headers.get("content-type", "")
    empty = not parsed.keys() - {"ResponseMetadata"}
    unreadable = empty and "json" in content_type and not _is_json(http_response.content)
    if unreadable or content_type.startswith(("text/html", "text/plain")):
        raise NotFromAws(operation=model.name, content_type=content_type)


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body or b"{}")
    except ValueError:
        return False
    return True


def credentials(session: Session) -> Callable[[], Credentials]:
    """Return a function that returns the SDK's current credentials, refreshed as they expire.

    The function raises Unavailable if there aren't any.
    https://docs.aws.amazon.com/boto3/latest/guide/credentials.html
    """

    def current() -> Credentials:
        try:
            found = session.get_credentials()
            frozen = found and found.get_frozen_credentials()
        except BotoCoreError as error:
            raise Unavailable(f"AWS credentials can't be loaded: {error}") from error
        if not frozen or not frozen.access_key or not frozen.secret_key:
            raise Unavailable("AWS credentials are missing")
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token)

    return current
