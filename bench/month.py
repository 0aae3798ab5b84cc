"""What a month costs, by component, and how that compares with API Gateway's own part of it.

The prices are AWS's, and each names the page that it is from. The units of DynamoDB are those of
`bench.units`, which tests measure.
"""

import math
from typing import NamedTuple

from bench import units
from bench.units import Units

# https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-execution-service-websocket-limits-table.html
LIFE_SECONDS = 2 * 60 * 60
PING_SECONDS = 9.5 * 60  # of silence in both directions, after which the clients ping
HEARTBEAT_SECONDS = 57 * 60  # without a frame of its own, after which a client sends a heartbeat
SWEEP_SECONDS = 10 * 60

PRICES = {
    # us-east-1, without free tiers and savings plans; the first tier where there are several
    "WebSocket message": 1.00e-6,  # https://aws.amazon.com/api-gateway/pricing/
    "connection minute": 0.25e-6,
    "Lambda request": 0.20e-6,  # https://aws.amazon.com/lambda/pricing/
    "Lambda GB-second": 13.3334e-6,  # on arm64
    "DynamoDB write": 0.625e-6,  # https://aws.amazon.com/dynamodb/pricing/on-demand/
    "DynamoDB read": 0.125e-6,
    "SQS request": 0.40e-6,  # https://aws.amazon.com/sqs/pricing/
}
PROVISIONED = {
    # an hour of a unit a second: https://aws.amazon.com/dynamodb/pricing/provisioned/
    "DynamoDB write": 0.00065,
    "DynamoDB read": 0.00013,
}
OTHERS_MINUTE = 0.08e-6  # of a connection, to either of these services
OTHERS = {
    "AppSync Events": ((math.inf, 1.00e-6),),  # https://aws.amazon.com/appsync/pricing/
    # https://aws.amazon.com/iot-core/pricing/
    "IoT Core": ((1e9, 1.00e-6), (5e9, 0.80e-6), (math.inf, 0.70e-6)),
}
"""The prices of a message of up to 5 KB: the number up to which each holds, and the price."""
HOURS_A_MONTH = 730
MEGABYTES_PER_CPU = 1769  # https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html
READ_BYTES = 4096  # of a read unit; half a unit if the read is eventually consistent

# Guesses of what a function with 512 MB takes, each with some room:
GIGABYTES = 0.5
HANDLER_SECONDS = 0.015  # a handshake, its authorizer, its end, a heartbeat
SEND_SECONDS = 0.04  # a message to one user, with its delivery
RESUME_SECONDS = 0.04
SWEPT_PER_SECOND = 10_000  # connections

FLOOR = (
    "connection minutes",
    "pings, or heartbeats in their place, and their answers",
    "messages from clients, acknowledged",
    "deliveries",
)
"""What API Gateway charges whatever is behind it."""

IDLE, LOADED = "nothing but pings", "100 broadcasts a day, 1 message an hour"
MAX_RATIO = {IDLE: 1.25, LOADED: 1.3}
"""The most that a month may cost, as a multiple of its floor."""


class Traffic(NamedTuple):
    """What happens in a month."""

    connections: int
    """How many are open at all times."""
    broadcasts: int
    """Messages to all of them."""
    messages: int
    """Messages from a client to one other."""

    @property
    def minutes(self) -> float:
        return HOURS_A_MONTH * 60 * self.connections

    @property
    def opened(self) -> float:
        """Handshakes: API Gateway closes each connection after two hours."""
        return self.minutes * 60 / LIFE_SECONDS

    @property
    def pings(self) -> float:
        """Pings, and heartbeats in their place, after nine and a half minutes without traffic.

        Acknowledgements follow a frame at once, so they end no silence of their own. That a
        handshake and its resume end one, each two hours, is left out.
        """
        return self._silences(self.deliveries + self.messages, PING_SECONDS)

    @property
    def heartbeats(self) -> float:
        """Heartbeats: as often as a client has sent no message for 57 minutes."""
        return self._silences(self.messages, HEARTBEAT_SECONDS)

    @property
    def deliveries(self) -> float:
        return self.broadcasts * self.connections + self.messages

    def _silences(self, events: float, seconds: float) -> float:
        """Return how often `seconds` pass without an event, or since they last did.

        The events of a client come at random, independently of each other: a Poisson process.
        """
        silences = self.minutes * 60 / seconds
        if not events:
            return silences
        expected = events / silences  # in that time
        return events / math.expm1(expected)


def month(traffic: Traffic, per_cpu: float) -> dict[str, float]:
    """Return the dollars a month, by component.

    Each client is in one group. Each one that reconnects resumes, and its streams are small.

    Args:
        traffic: What happens.
        per_cpu: Deliveries per second of a processor.
    """
    opened, messages, heartbeats = traffic.opened, traffic.messages, traffic.heartbeats
    message = PRICES["WebSocket message"]
    worker_seconds = traffic.deliveries / per_cpu * MEGABYTES_PER_CPU / 1024
    handshake = units.OPEN_IN_A_GROUP.plus(units.END_IN_A_GROUP)
    return {
        FLOOR[0]: traffic.minutes * PRICES["connection minute"],
        FLOOR[1]: 2 * traffic.pings * message,
        FLOOR[2]: 2 * messages * message,
        FLOOR[3]: traffic.deliveries * message,
        "resumes and their answers": 2 * opened * message,
        "Lambda: handshakes and ends": 3 * opened * _invocation(HANDLER_SECONDS),
        "Lambda: resumes": opened * _invocation(RESUME_SECONDS),
        "Lambda: heartbeats": heartbeats * _invocation(HANDLER_SECONDS),
        "Lambda: messages": messages * _invocation(SEND_SECONDS),
        "Lambda: workers": worker_seconds * PRICES["Lambda GB-second"],
        "Lambda: the sweep": _sweeps(traffic)
        * GIGABYTES
        * PRICES["Lambda GB-second"]
        / SWEPT_PER_SECOND,
        "DynamoDB: handshakes and ends": opened * _dollars(handshake),
        "DynamoDB: resumes": opened * _dollars(units.RESUME),
        "DynamoDB: heartbeats": heartbeats * _dollars(units.HEARTBEAT),
        "DynamoDB: messages": messages
        * _dollars(units.FRAME[1].plus(units.HISTORY, units.RECIPIENTS)),
        "DynamoDB: broadcasts": traffic.broadcasts
        * (_dollars(units.HISTORY) + traffic.connections * _read(units.ROSTER_ENTRY_BYTES)),
        "DynamoDB: the sweep": _sweeps(traffic) * _read(units.CONNECTION_BYTES) / 2
        + traffic.minutes / 60 * _dollars(units.TIED)
        + opened * _dollars(units.UNPROVEN)
        + (opened * _dollars(units.LAGGING) if messages else 0),
        "SQS": traffic.broadcasts * units.ROSTER_SHARDS * 3 * 2 * PRICES["SQS request"],
    }


def _invocation(seconds: float) -> float:
    return PRICES["Lambda request"] + seconds * GIGABYTES * PRICES["Lambda GB-second"]


def _dollars(event: Units) -> float:
    return event.writes * PRICES["DynamoDB write"] + event.reads * PRICES["DynamoDB read"]


def _read(size: int) -> float:
    """Return the dollars for one of many items that are read together, consistently."""
    return size / READ_BYTES * PRICES["DynamoDB read"]


def _sweeps(traffic: Traffic) -> float:
    """Return how many connections the sweep looks at."""
    return traffic.minutes * 60 / SWEEP_SECONDS


def floor(parts: dict[str, float]) -> float:
    """Return the part of a month that API Gateway charges whatever is behind it."""
    return sum(parts[name] for name in FLOOR)


def ratio(parts: dict[str, float]) -> float:
    """Return a month's cost as a multiple of its floor."""
    return sum(parts.values()) / floor(parts)


MONTHS = {
    IDLE: Traffic(connections=1_000_000, broadcasts=0, messages=0),
    LOADED: Traffic(connections=1_000_000, broadcasts=3_000, messages=1_000_000 * HOURS_A_MONTH),
}


def months(per_cpu: float) -> dict[str, dict[str, float]]:
    """Return the months that `docs/scale.md` shows."""
    return {name: month(traffic, per_cpu) for name, traffic in MONTHS.items()}


# --- Provisioned capacity, and other services


def break_even(unit: str) -> float:
    """Return from which utilization on a provisioned unit is cheaper than units on demand."""
    return PROVISIONED[unit] / (3600 * PRICES[unit])


BROADCAST_ONLY = {
    "nothing": Traffic(connections=1_000_000, broadcasts=0, messages=0),
    "100 broadcasts a day": Traffic(connections=1_000_000, broadcasts=3_000, messages=0),
}


def services(per_cpu: float) -> dict[str, dict[str, float]]:
    """Return the dollars a month of each service that can send broadcasts, by what is sent.

    AppSync Events and IoT Core keep a connection open for a day, without pings that are billed. A
    connection costs an operation, and its subscription another one.
    """
    return {
        name: {
            "Herald": sum(month(traffic, per_cpu).values()),
            **{service: _other_service(traffic, service) for service in OTHERS},
        }
        for name, traffic in BROADCAST_ONLY.items()
    }


def _other_service(traffic: Traffic, service: str) -> float:
    days = HOURS_A_MONTH / 24
    left = traffic.deliveries + traffic.broadcasts + 2 * days * traffic.connections
    dollars = traffic.minutes * OTHERS_MINUTE
    before = 0.0
    for until, price in OTHERS[service]:
        some = min(left, until - before)
        dollars += some * price
        left, before = left - some, until
    return dollars
