"""The environment, read once into one typed, validated object.

Each field of `Settings` is read from the variable that has its name: `jwt_secret` from
`HERALD_JWT_SECRET`. It says which values are accepted, what the setting means, and its default;
`python docs/settings_table.py` writes the same into `docs/configuration.md`.
"""

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar, overload

from chalicelib import aws_limits
from chalicelib.setting_parsers import (
    HTTP_URL,
    KEY_SET_URL,
    NETWORKS,
    ORIGINS,
    SECRET_ARN,
    TABLE,
    TEXT,
    TOPIC,
    Network,
    Parser,
    one_of,
    rate,
    whole_number,
)

PREFIX = "HERALD_"
MIN_SECRET_BYTES = 32  # RFC 7518 section 3.2: an HS256 key is at least as long as the hash
STALE_AFTER_SECONDS = 75 * 60  # longer than an hour, in which an idle client sends a heartbeat
LOCAL_SECRET = "local-"  # noqa: S105
"""The prefix of the secret that `make run` makes for a checkout, where developers can read it."""
SSH_KEYS = ("ssh-", "ecdsa-sha2-")
MAX_SHOWN_CHARACTERS = 80
MIN_SIMILARITY = 0.6  # a `difflib` ratio; names that differ more are hardly typing errors
RESERVED = frozenset(
    {
        "HERALD_EVENTS",
        "HERALD_EVENT_BUS",
        "HERALD_PRESENCE_MEMBERS",
        "HERALD_SERVICE_RATE",
    }
)
"""Variables of planned features: accepted, so that one configuration fits two versions, but
without effect, which the log says."""

T = TypeVar("T")


class SettingsError(ValueError):
    """The environment has unknown variables or wrong values; the text has a line for each."""


class ConnectionLimitPolicy(StrEnum):
    """What happens when a user at the connection limit opens another connection."""

    REJECT = "reject"
    EVICT_OLDEST = "evict-oldest"


class LimiterFailure(StrEnum):
    """Whether messages are accepted while storage can't tell how many their sender has sent."""

    CLOSED = "closed"
    OPEN = "open"


class MasterKey(NamedTuple):
    """A key that users' keys are derived from, and the `kid` that names it.

    A tuple, since a second dataclass would make each cold start 0.4 ms longer.
    """

    kid: str
    secret: bytes

    def __repr__(self) -> str:
        return f"MasterKey(kid={self.kid!r})"


def _hs256_secret(text: str) -> str:
    """Refuse short secrets, and the text of a key, which PyJWT doesn't accept for HS256."""
    is_key = "-----BEGIN " in text or '"kty"' in text or text.startswith(SSH_KEYS)
    if len(text.encode()) < MIN_SECRET_BYTES or is_key:
        raise ValueError
    return text


def _master_keys(text: str) -> tuple[MasterKey, ...]:
    try:
        keys = tuple(_master_key(entry) for entry in json.loads(text)["keys"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError from error
    if not keys or len({key.kid for key in keys}) < len(keys):
        raise ValueError
    return keys


def _master_key(entry: Mapping[str, Any]) -> MasterKey:
    kid, encoded = entry["kid"], entry["k"]
    if entry["kty"] != "oct" or not isinstance(kid, str) or not kid:
        raise ValueError
    if not re.fullmatch(r"[A-Za-z0-9_-]*", encoded):
        raise ValueError
    secret = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError
    return MasterKey(kid, secret)


HS256_SECRET = Parser(
    _hs256_secret,
    f"at least {MIN_SECRET_BYTES} bytes, and neither a public key nor a JWK",
    secret=True,
)
MASTER_KEYS = Parser(
    _master_keys,
    f"a JWK Set of keys with kty oct, a unique kid, and a k of at least {MIN_SECRET_BYTES} bytes",
    secret=True,
)


@overload
def _setting(parser: Parser[T], meaning: str) -> T | None: ...
@overload
def _setting(parser: Parser[T], meaning: str, *, default: T) -> T: ...
def _setting(parser: Parser[Any], meaning: str, *, default: object = None) -> Any:
    """Declare a field of `Settings`; without a default it is None if not set."""
    metadata = {"parser": parser, "meaning": meaning}
    return field(default=default, repr=not parser.secret, metadata=metadata)


def variable_of(name: str) -> str:
    """Return the environment variable of a field of `Settings`."""
    return PREFIX + name.upper()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Herald's settings, in the units that their names end with. None means not set."""

    stage: str = _setting(
        TEXT, "The deployment stage: the dimension `Stage` of every metric", default="local"
    )
    jwt_secret: str | None = _setting(HS256_SECRET, "The secret that HS256 tokens are signed with")
    jwt_secret_arn: str | None = _setting(
        SECRET_ARN, "The same, in Secrets Manager: the secret's whole value is the key"
    )
    jwks_url: str | None = _setting(
        KEY_SET_URL, "An identity provider's JWK Set with its RS256, ES256 or EdDSA keys"
    )
    jwt_issuer: str | None = _setting(TEXT, "If set, a token's `iss` must equal it")
    jwt_audience: str | None = _setting(TEXT, "If set, a token's `aud` must contain it")
    jwt_leeway_seconds: int = _setting(
        whole_number(0), "The clock skew to tolerate in a token's times", default=5
    )
    connections_table: str = _setting(
        TABLE, "The DynamoDB table of connections", default="herald-connections"
    )
    users_table: str = _setting(TABLE, "The DynamoDB table of users", default="herald-users")
    groups_table: str = _setting(
        TABLE, "The DynamoDB table of groups' members", default="herald-groups"
    )
    messages_table: str = _setting(
        TABLE,
        "The DynamoDB table of queued messages, idempotency keys and the fan-out rate",
        default="herald-messages",
    )
    history_table: str = _setting(
        TABLE,
        "The DynamoDB table of recent messages, which returning clients resume from",
        default="herald-history",
    )
    max_connections_per_user: int = _setting(
        whole_number(1), "The number of connections that a user may have open", default=10
    )
    connection_limit_policy: ConnectionLimitPolicy = _setting(  # noqa: RUF009 - it is a `field`
        one_of(ConnectionLimitPolicy),
        "What happens when a user at that limit opens another connection: it is refused with 429,"
        " or it replaces the user's oldest one",
        default=ConnectionLimitPolicy.REJECT,
    )
    stale_after_seconds: int = _setting(
        whole_number(1),
        "After this long without activity, a connection is stale and gets probed; clients send a"
        " heartbeat every hour",
        default=STALE_AFTER_SECONDS,
    )
    ip_allow: tuple[Network, ...] = _setting(
        NETWORKS, "The addresses that clients may connect from; any if not set", default=()
    )
    ip_deny: tuple[Network, ...] = _setting(
        NETWORKS, "Addresses that are refused, even if `HERALD_IP_ALLOW` has them", default=()
    )
    allowed_origins: tuple[str, ...] = _setting(
        ORIGINS,
        "The origins of pages that may connect. If set, a request's `Origin` must be one of them; a"
        " request without `Origin` passes",
        default=(),
    )
    message_rate: float = _setting(
        rate("second"),
        "Units for each user, over REST and WebSockets together. A request costs one unit for each"
        " 100 copies that it writes or sends, and at least one",
        default=20.0,
    )
    message_burst: int = _setting(
        whole_number(1), "How many units a user may use at once", default=40
    )
    read_rate: float = _setting(
        rate("second"),
        "REST requests that send nothing, for each user: presence, connections and closing them,"
        " progress, keys",
        default=20.0,
    )
    read_burst: int = _setting(
        whole_number(1), "How many of these a user may make at once", default=40
    )
    connect_rate: float = _setting(
        rate("minute"),
        "Connection attempts for each user, refused ones among them, and as many resumes; a"
        " minute's worth may come at once",
        default=60.0,
    )
    daily_message_quota: int = _setting(
        whole_number(0),
        "Messages for each user and UTC day. A request counts its messages or its units, whichever"
        " are more; 0 means no limit",
        default=0,
    )
    limiter_failure: LimiterFailure = _setting(  # noqa: RUF009 - it is a `field`
        one_of(LimiterFailure),
        "What happens to messages while storage can't tell how many their sender has sent:"
        " `closed` refuses them with 503, `open` accepts them uncounted. Both are logged",
        default=LimiterFailure.CLOSED,
    )
    inline_recipients: int = _setting(
        whole_number(0),
        "A request of at most this many frames (one for most messages and each connection) is"
        " delivered before it is answered; a larger one goes through the queue",
        default=1000,
    )
    fanout_queue_url: str | None = _setting(
        HTTP_URL,
        "The SQS queue of fan-out jobs; if not set, every request is delivered before it is"
        " answered",
    )
    fanout_batch_seconds: int = _setting(
        whole_number(0, 300),
        "How long a worker waits for more jobs to do together, which delays every queued message"
        " by as much; 0 means that it takes only what is there",
        default=0,
    )
    fanout_rate: int = _setting(
        whole_number(0, suffix=", per second"),
        "Frames that all workers may send together, in equal shares for the tenants; frames beyond"
        " the first 100 of a request that is delivered before it is answered count, too. 0 means no"
        " limit. The rest of the account's quota (10,000 a second by default) is left to smaller"
        " requests",
        default=8000,
    )
    notify_topic_arn: str | None = _setting(
        TOPIC,
        "An SNS topic that also receives the notices that users get about their connections",
    )
    encryption_keys: tuple[MasterKey, ...] = _setting(
        MASTER_KEYS, "The master keys of encrypted messages; the first one encrypts", default=()
    )
    encryption_keys_arn: str | None = _setting(
        SECRET_ARN,
        "The same, in Secrets Manager: the secret's whole value is the JWK Set. Only one of the two"
        " can be set",
    )
    history_seconds: int = _setting(
        whole_number(0),
        "How long messages are kept for clients to resume; 0 means that they aren't kept",
        default=300,
    )
    frame_bytes: int = _setting(
        whole_number(1024, aws_limits.MESSAGE_BYTES),
        "Messages for one connection are combined into frames of up to this size; API Gateway"
        " meters in steps of 32 KB",
        default=aws_limits.FRAME_BYTES,
    )
    management_endpoint: str | None = _setting(
        HTTP_URL,
        "Where `@connections` is called, instead of the address in a connection's event. Needed"
        " where the API's default endpoint (`…execute-api…`) is disabled; the stage is then"
        " limited to one region",
    )

    @property
    def fanout_queue_name(self) -> str | None:
        """The last part of the queue's URL. A deployed stage may have the name alone as its URL."""
        return self.fanout_queue_url and self.fanout_queue_url.rpartition("/")[2]

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str], defaults: Mapping[str, object] | None = None
    ) -> "Settings":
        """Read `HERALD_*` from `environ`; an empty value counts as not set.

        `defaults` has values, by field, for what `environ` doesn't set.

        Raises SettingsError, with a line for each unknown variable and each wrong value.
        """
        values: dict[str, object] = dict(defaults or {})
        errors = list(_unknown_variables(environ))
        for setting in fields(cls):
            text = environ.get(variable_of(setting.name), "").strip()
            if not text:
                continue
            parser: Parser[object] = setting.metadata["parser"]
            try:
                values[setting.name] = parser.parse(text)
            except ValueError:
                errors.append(_wrong_value(variable_of(setting.name), text, parser))
        if values.get("encryption_keys") and values.get("encryption_keys_arn"):
            errors.append(
                "HERALD_ENCRYPTION_KEYS and HERALD_ENCRYPTION_KEYS_ARN are both set; allowed: one,"
                " which says which key encrypts"
            )
        if "AWS_LAMBDA_FUNCTION_NAME" in environ:
            errors.extend(_local_secrets(values))
        if errors:
            raise SettingsError("\n".join(errors))
        return cls(**values)  # type: ignore[arg-type]


def _wrong_value(variable: str, text: str, parser: Parser[object]) -> str:
    if parser.secret:
        held = f"{len(text.encode())} bytes"
    elif len(text) <= MAX_SHOWN_CHARACTERS:
        held = repr(text)
    else:
        held = f"{text[:MAX_SHOWN_CHARACTERS]!r}… ({len(text)} characters)"
    return f"{variable} holds {held}; allowed: {parser.allowed}"


def _unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each variable that is named like a setting but isn't one."""
    known = [variable_of(setting.name) for setting in fields(Settings)]
    for name in sorted(environ.keys() - RESERVED.union(known)):
        if name.startswith(PREFIX) and environ[name].strip():
            yield f"{name} is not a setting; {_suggestion(name, known)}"


def _suggestion(name: str, known: list[str]) -> str:
    from difflib import SequenceMatcher, get_close_matches  # rarely needed, and slow to load

    wanted, names = name.removeprefix(PREFIX), [one.removeprefix(PREFIX) for one in known]
    nearest = get_close_matches(wanted, names, n=1, cutoff=0)[0]
    if SequenceMatcher(None, nearest, wanted).ratio() >= MIN_SIMILARITY:
        return f"did you mean {PREFIX}{nearest}?"
    return f"the nearest is {PREFIX}{nearest}; docs/configuration.md lists all settings"


def _local_secrets(values: Mapping[str, object]) -> Iterator[str]:
    """Yield a line for a secret made for local use, which must not be deployed."""
    if str(values.get("jwt_secret", "")).startswith(LOCAL_SECRET):
        yield (
            f"HERALD_JWT_SECRET holds a secret that begins with {LOCAL_SECRET}, which was made for"
            " local use; allowed on Lambda: another secret, such as `openssl rand -base64 48`"
            " prints"
        )
