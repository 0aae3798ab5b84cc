"""The AWS SDK as Herald uses it: clients that answer or give up soon, and its credentials.

That is botocore, which boto3 is built on. boto3 itself adds what Herald never calls (resources,
transfers of S3) and 30 ms to each cold start.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.session import Session

from chalicelib.errors import Unavailable

CLIENT_LIMITS = Config(
    connect_timeout=0.4,
    read_timeout=0.8,
    retries={"mode": "standard", "total_max_attempts": 2},
    max_pool_connections=50,
)
"""An answer, or an end, within three seconds: 0.8 s twice, and the SDK's pause of up to 1 s.

DynamoDB answers in milliseconds, so who waits longer waits for nothing; and a second try, on
another socket, mends what one lost packet or one slow server did. The SDK's defaults are a minute
for each try: a client in its handshake, or a caller of POST, would wait for longer than API
Gateway does. https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html
"""


def sdk_client(session: Session, service: str, region: str | None = None) -> Any:
    """A client of `service` within these limits, in the session's region or another.

    Its calls raise ForeignAnswer, a BotoCoreError, for what AWS can't have answered.
    """
    client = session.create_client(service, region, config=CLIENT_LIMITS)
    client.meta.events.register("after-call", _refuse_foreign_answers)
    return client


@dataclass(frozen=True, slots=True)
class Credentials:
    """What signs: long-lived keys, or a role's with their session token."""

    access_key: str
    secret_key: str
    token: str | None = None


class ForeignAnswer(BotoCoreError):
    """Something between us and AWS answered, such as a proxy with a page of its own.

    To the SDK a body that it can't read is an empty answer, so that a write that never was made
    would look like one that was.
    """

    fmt = "the answer to {operation} is not AWS's: {kind}"


def _refuse_foreign_answers(http_response: Any, parsed: Any, model: Any, **_: Any) -> None:
    if http_response.status_code != 200:
        return
    kind = http_response.headers.get("content-type", "")
    nothing_read = not parsed.keys() - {"ResponseMetadata"}
    unreadable = nothing_read and "json" in kind and not _is_json(http_response.content)
    if unreadable or kind.startswith(("text/html", "text/plain")):
        raise ForeignAnswer(operation=model.name, kind=kind)


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body or b"{}")
    except ValueError:
        return False
    return True


def credentials(session: Session) -> Callable[[], Credentials]:
    """What the SDK would sign with at each moment; it refreshes what expires.

    The function raises Unavailable where there are none.
    https://docs.aws.amazon.com/boto3/latest/guide/credentials.html
    """

    def current() -> Credentials:
        try:
            found = session.get_credentials()
            frozen = found and found.get_frozen_credentials()
        except BotoCoreError as error:
            raise Unavailable(f"AWS credentials are missing: {error}") from error
        if not frozen or not frozen.access_key or not frozen.secret_key:
            raise Unavailable("AWS credentials are missing")
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token)

    return current
