"""The environment, read once into one typed, validated object.

Each field of `Settings` names its variable, what it may hold and its default. A value that may
not be held raises `SettingsError` with one line for each wrong variable; a secret's value is
never shown.
"""

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any
from urllib.parse import urlsplit

EVICT_OLDEST = "evict-oldest"
FAILS_OPEN = "open"
MIN_SECRET_BYTES = 32  # RFC 7518 section 3.2: a key of at least the hash's size for HS256
LOCAL_SECRET = "local-"  # noqa: S105
"""How the secret begins that `make run` makes for one checkout, and each developer can read."""
SSH_KEYS = ("ssh-", "ecdsa-sha2-")
MAPPED_PREFIX = 96
PREFIX = "HERALD_"
MOST = 1_000_000_000  # seconds: thirty years; with more, sums would pass what storage can hold
LEAST_RATE = 0.000001
SHOWN_CHARACTERS = 80
NEAR = 0.6  # of `difflib`: what is less alike is hardly a slip of the pen
RESERVED = frozenset(
    {
        "HERALD_ENCRYPTION_KEYS_ARN",
        "HERALD_EVENTS",
        "HERALD_EVENT_BUS",
        "HERALD_PRESENCE_MEMBERS",
        "HERALD_READ_BURST",
        "HERALD_READ_RATE",
        "HERALD_SERVICE_RATE",
    }
)
"""Variables of features to come: accepted, so that one configuration fits two versions, and
without effect, which the log says."""
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class MasterKey:
    """A key from which users' keys are derived, and the name that these have for it."""

    kid: str
    secret: bytes = field(repr=False)


class SettingsError(ValueError):
    """The environment holds values that are not allowed; the text has a line for each."""


def _text(value: str) -> str:
    return value


def _whole_number(minimum: int, maximum: int = MOST) -> Callable[[str], int]:
    def parse(value: str) -> int:
        number = int(value)
        if not minimum <= number <= maximum:
            raise ValueError
        return number

    return parse


def _rate(value: str) -> float:
    number = float(value)
    if not LEAST_RATE <= number <= MOST:  # which NaN isn't, either
        raise ValueError
    return number


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError
        return value

    return parse


def _list(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _networks(value: str) -> tuple[Network, ...]:
    return tuple(_network(part) for part in _list(value))


def _network(value: str) -> Network:
    """A network; of IPv4 addresses written as IPv6, theirs (RFC 4291 section 2.5.5.2)."""
    network = ip_network(value)
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is None or network.prefixlen < MAPPED_PREFIX:
        return network
    return IPv4Network((mapped, network.prefixlen - MAPPED_PREFIX))


def _origins(value: str) -> tuple[str, ...]:
    origins = tuple(part.rstrip("/").lower() for part in _list(value))
    if not all(urlsplit(origin).scheme and urlsplit(origin).netloc for origin in origins):
        raise ValueError
    return origins


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError
    return value.rstrip("/")


def _key_set_url(value: str) -> str:
    """Keys that anybody on the way could replace would verify anybody's tokens."""
    parts = urlsplit(value)
    over_tls = parts.scheme == "https" or parts.hostname in LOOPBACK_HOSTS
    if not over_tls or "@" in parts.netloc or parts.fragment or parts.port == 0:
        raise ValueError
    _http_url(value)
    return value  # to the letter: with a slash at its end it may be another


def _secret_arn(value: str) -> str:
    if not re.fullmatch(r"arn:[^:]+:secretsmanager:[^:]+:\d*:secret:.+", value):
        raise ValueError
    return value


def _secret(value: str) -> str:
    """Refuse a short secret, and the text of a key: PyJWT takes neither for HS256."""
    is_key = "-----BEGIN " in value or '"kty"' in value or value.startswith(SSH_KEYS)
    if len(value.encode()) < MIN_SECRET_BYTES or is_key:
        raise ValueError
    return value


def _master_keys(value: str) -> tuple[MasterKey, ...]:
    try:
        keys = tuple(_master_key(entry) for entry in json.loads(value)["keys"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError from error
    if not keys or len({key.kid for key in keys}) < len(keys):
        raise ValueError
    return keys


def _master_key(entry: Mapping[str, Any]) -> MasterKey:
    kid, text = entry["kid"], entry["k"]
    if entry["kty"] != "oct" or not isinstance(kid, str) or not kid:
        raise ValueError
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise ValueError
    secret = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError
    return MasterKey(kid, secret)


def _shown(value: str) -> str:
    if len(value) <= SHOWN_CHARACTERS:
        return repr(value)
    return f"{value[:SHOWN_CHARACTERS]!r}… ({len(value)} characters)"


def _unknown(environ: Mapping[str, str], known: list[str]) -> list[str]:
    """A line for each variable that is called like a setting, and is not one."""
    unknown = sorted(
        name
        for name, value in environ.items()
        if name.startswith(PREFIX) and name not in RESERVED.union(known) and value.strip()
    )
    return [f"{name} is not a setting; {_suggestion(name, known)}" for name in unknown]


def _suggestion(name: str, known: list[str]) -> str:
    from difflib import SequenceMatcher, get_close_matches  # rarely needed, and slow to load

    wanted, names = name.removeprefix(PREFIX), [one.removeprefix(PREFIX) for one in known]
    nearest = get_close_matches(wanted, names, n=1, cutoff=0)[0]
    if SequenceMatcher(None, nearest, wanted).ratio() >= NEAR:
        return f"did you mean {PREFIX}{nearest}?"
    return f"the nearest is {PREFIX}{nearest}, and docs/configuration.md lists all"


def _variable(
    name: str,
    meaning: str,
    parse: Callable[[str], object],
    allowed: str,
    default: object = None,
    *,
    secret: bool = False,
) -> Any:
    metadata = {
        "variable": name,
        "meaning": meaning,  # for docs/configuration.md
        "parse": parse,
        "allowed": allowed,
        "secret": secret,
    }
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Herald's settings. Seconds, bytes and counts as the names say; None is «not set»."""

    stage: str = _variable("HERALD_STAGE", "the metrics' dimension `Stage`", _text, "text", "local")
    jwt_secret: str | None = _variable(
        "HERALD_JWT_SECRET",
        "HS256 secret",
        _secret,
        f"at least {MIN_SECRET_BYTES} bytes that are neither a public key nor a JWK",
        secret=True,
    )
    jwt_secret_arn: str | None = _variable(
        "HERALD_JWT_SECRET_ARN",
        "the same in Secrets Manager: all of the secret's value is the key",
        _secret_arn,
        "the ARN of a Secrets Manager secret",
    )
    jwks_url: str | None = _variable(
        "HERALD_JWKS_URL",
        "RS256, ES256 and EdDSA keys of an identity provider, a JWK Set",
        _key_set_url,
        "an https URL; http for a loopback address alone",
    )
    jwt_issuer: str | None = _variable("HERALD_JWT_ISSUER", "checked when set", _text, "text")
    jwt_audience: str | None = _variable("HERALD_JWT_AUDIENCE", "checked when set", _text, "text")
    jwt_leeway_seconds: int = _variable(
        "HERALD_JWT_LEEWAY_SECONDS",
        "clock skew",
        _whole_number(0),
        f"a whole number from 0 to {MOST}",
        5,
    )
    connections_table: str = _variable(
        "HERALD_CONNECTIONS_TABLE", "connections", _text, "a table's name", "herald-connections"
    )
    users_table: str = _variable(
        "HERALD_USERS_TABLE", "users", _text, "a table's name", "herald-users"
    )
    groups_table: str = _variable(
        "HERALD_GROUPS_TABLE", "groups' members", _text, "a table's name", "herald-groups"
    )
    messages_table: str = _variable(
        "HERALD_MESSAGES_TABLE",
        "queued messages, idempotency keys and the workers' pace",
        _text,
        "a table's name",
        "herald-messages",
    )
    history_table: str = _variable(
        "HERALD_HISTORY_TABLE",
        "what was sent of late, for clients that come back",
        _text,
        "a table's name",
        "herald-history",
    )
    max_connections_per_user: int = _variable(
        "HERALD_MAX_CONNECTIONS_PER_USER",
        "connections of each user",
        _whole_number(1),
        f"a whole number from 1 to {MOST}",
        10,
    )
    connection_limit_policy: str = _variable(
        "HERALD_CONNECTION_LIMIT_POLICY",
        "one more is refused with 429, or takes the oldest one's place",
        _one_of("reject", EVICT_OLDEST),
        "reject or evict-oldest",
        "reject",
    )
    stale_after_seconds: int = _variable(
        "HERALD_STALE_AFTER_SECONDS",
        "a connection that was silent for so long is stale, and asked whether it lives",
        _whole_number(1),
        f"a whole number from 1 to {MOST}",
        600,
    )
    ip_allow: tuple[Network, ...] = _variable(
        "HERALD_IP_ALLOW",
        "who may come in; none: everybody",
        _networks,
        "comma-separated IPv4 or IPv6 CIDRs",
        (),
    )
    ip_deny: tuple[Network, ...] = _variable(
        "HERALD_IP_DENY",
        "who may not; this wins",
        _networks,
        "comma-separated IPv4 or IPv6 CIDRs",
        (),
    )
    allowed_origins: tuple[str, ...] = _variable(
        "HERALD_ALLOWED_ORIGINS",
        "a browser's `Origin` must be one, if there are any; without `Origin` a request passes",
        _origins,
        "comma-separated origins such as https://app.example.com",
        (),
    )
    message_rate: float = _variable(
        "HERALD_MESSAGE_RATE",
        "requests of each user, over REST and WebSockets together",
        _rate,
        f"a number from {LEAST_RATE:f} to {MOST}, per second",
        20.0,
    )
    message_burst: int = _variable(
        "HERALD_MESSAGE_BURST",
        "how many of them at once",
        _whole_number(1),
        f"a whole number from 1 to {MOST}",
        40,
    )
    connect_rate: float = _variable(
        "HERALD_CONNECT_RATE",
        "connections of each user; a minute's may come at once",
        _rate,
        f"a number from {LEAST_RATE:f} to {MOST}, per minute",
        60.0,
    )
    daily_message_quota: int = _variable(
        "HERALD_DAILY_MESSAGE_QUOTA",
        "messages for each user and UTC day; each message of a POST counts; 0: no limit",
        _whole_number(0),
        f"a whole number from 0 to {MOST}",
        0,
    )
    limiter_failure: str = _variable(
        "HERALD_LIMITER_FAILURE",
        "when storage can't say what a user has done, messages are refused with 503, or pass "
        "uncounted; the log says so either way",
        _one_of("closed", FAILS_OPEN),
        "closed or open",
        "closed",
    )
    inline_recipients: int = _variable(
        "HERALD_INLINE_RECIPIENTS",
        "a request for up to so many connections is delivered before it is answered; for more, "
        "through the queue",
        _whole_number(0),
        f"a whole number from 0 to {MOST}",
        1000,
    )
    fanout_queue_url: str | None = _variable(
        "HERALD_FANOUT_QUEUE_URL",
        "the SQS queue; without one everything is delivered before the answer",
        _http_url,
        "an http(s) URL",
    )
    fanout_batch_seconds: int = _variable(
        "HERALD_FANOUT_BATCH_SECONDS",
        "how long a worker waits for more jobs that it could do together: every queued message "
        "waits so long. At 0 it takes what is there",
        _whole_number(0, 300),
        "0 to 300",
        0,
    )
    fanout_rate: int = _variable(
        "HERALD_FANOUT_RATE",
        "frames of all workers together, in equal shares for the tenants; 0: no limit. The rest"
        " of the account's quota (10,000 a second by default) is for what is delivered before "
        "its answer",
        _whole_number(0),
        f"a whole number from 0 to {MOST}, per second",
        8000,
    )
    notify_topic_arn: str | None = _variable(
        "HERALD_NOTIFY_TOPIC_ARN",
        "the SNS topic that is told, too, of what users are told of their connections",
        _text,
        "a topic's ARN",
    )
    encryption_keys: tuple[MasterKey, ...] = _variable(
        "HERALD_ENCRYPTION_KEYS",
        "the master keys of encrypted messages; the first encrypts",
        _master_keys,
        f"a JWK Set of keys with kty oct, a kid of their own, and k of {MIN_SECRET_BYTES} bytes"
        " or more",
        (),
        secret=True,
    )
    history_seconds: int = _variable(
        "HERALD_HISTORY_SECONDS",
        "how long messages are kept for clients that come back; 0: none are",
        _whole_number(0),
        f"a whole number from 0 to {MOST}",
        300,
    )
    frame_bytes: int = _variable(
        "HERALD_FRAME_BYTES",
        "messages for one connection travel together up to this size; API Gateway meters in "
        "steps of 32 KB",
        _whole_number(1024, 131072),
        "1024 to 131072",
        32768,
    )
    management_endpoint: str | None = _variable(
        "HERALD_MANAGEMENT_ENDPOINT",
        "where `@connections` is called, if not where the connection's event says: needed where"
        " the API's own name (`…execute-api…`) is disabled; then for one region alone",
        _http_url,
        "an http(s) URL",
    )

    @property
    def fanout_queue_name(self) -> str | None:
        """The queue's name, which its URL ends with; on a deployed stage the name may be all."""
        return self.fanout_queue_url and self.fanout_queue_url.rpartition("/")[2]

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str], defaults: Mapping[str, object] | None = None
    ) -> "Settings":
        """Read `HERALD_*` from `environ`; an empty value counts as not set.

        `defaults` has values by field, for what `environ` doesn't set.

        Raises SettingsError, with a line for each variable that is no setting or has a wrong value.
        """
        values: dict[str, object] = dict(defaults or {})
        wrong = _unknown(environ, [setting.metadata["variable"] for setting in fields(cls)])
        for setting in fields(cls):
            variable = setting.metadata["variable"]
            raw = environ.get(variable, "").strip()
            if not raw:
                continue
            try:
                values[setting.name] = setting.metadata["parse"](raw)
            except ValueError:
                held = f"{len(raw.encode())} bytes" if setting.metadata["secret"] else _shown(raw)
                allowed = setting.metadata["allowed"]
                wrong.append(f"{variable} holds {held}; allowed: {allowed}")
        if "AWS_LAMBDA_FUNCTION_NAME" in environ:
            wrong += _local_secrets(values)
        if wrong:
            raise SettingsError("\n".join(wrong))
        return cls(**values)  # type: ignore[arg-type]


def _local_secrets(values: Mapping[str, object]) -> list[str]:
    """A line for a secret that must not travel: it lies readable in somebody's checkout."""
    if not str(values.get("jwt_secret", "")).startswith(LOCAL_SECRET):
        return []
    return [
        f"HERALD_JWT_SECRET holds a secret that begins with {LOCAL_SECRET}, which was made for one"
        " checkout; allowed on Lambda: another one, made by `openssl rand -base64 48`"
    ]
