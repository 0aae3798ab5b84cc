"""What the local gateway is told: by the environment, and by `.chalice/config.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.local_secret import BrokenSecret, local_secret

PROJECT = Path(__file__).resolve().parent.parent
HERALD = PROJECT / ".herald"
"""What the commands keep in a checkout, and Git leaves out."""
LOCAL_STAGE = "local"
SECRET = "HERALD_JWT_SECRET"  # noqa: S105
MAX_PORT = 65535
INTEGRATION_SECONDS = 29.0  # how long API Gateway waits for a function


class ConfigurationError(ValueError):
    """A variable holds what it may not; the text names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """How to serve. Durations in seconds; port 0 is a free one.

    The limits' defaults are API Gateway's:
    https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-execution-service-websocket-limits-table.html
    """

    host: str = "127.0.0.1"
    port: int = 8000
    idle_timeout: float = 600.0
    max_duration: float = 7200.0
    integration_timeout: float = INTEGRATION_SECONDS
    function_timeout: float = 60.0
    concurrency: int = 16
    schedule: float | None = None
    """How often scheduled functions run; by default as often as they say."""
    environment: Mapping[str, str]
    """What the functions see of the environment, before the gateway adds where AWS is."""
    project: Path = PROJECT
    """Where `app.py` is."""


def configuration(environ: Mapping[str, str]) -> Configuration:
    """Read HOST, PORT and the GATEWAY_* variables. Raises ConfigurationError."""
    chalice = chalice_configuration()
    return Configuration(
        host=environ.get("HOST") or "127.0.0.1",
        port=_port(environ),
        idle_timeout=_number(environ, "GATEWAY_IDLE_TIMEOUT_SECONDS", 600, 0.1, 86400),
        max_duration=_number(environ, "GATEWAY_MAX_DURATION_SECONDS", 7200, 0.1, 86400),
        integration_timeout=_number(
            environ, "GATEWAY_INTEGRATION_TIMEOUT_SECONDS", INTEGRATION_SECONDS, 0.05, 300
        ),
        function_timeout=float(chalice.get("lambda_timeout", 60)),
        concurrency=int(_number(environ, "GATEWAY_CONCURRENCY", 16, 1, 256)),
        schedule=_number(environ, "GATEWAY_SCHEDULE_SECONDS", 0, 0.2, 86400) or None,
        environment=local_environment(environ),
    )


def _port(environ: Mapping[str, str]) -> int:
    port = _number(environ, "PORT", 8000, 0, MAX_PORT)
    if port != int(port):
        raise ConfigurationError(
            f"PORT holds {environ['PORT']!r}; allowed: a number from 0 to {MAX_PORT},"
            " without a fraction"
        )
    return int(port)


def chalice_configuration() -> dict[str, Any]:
    """Read `.chalice/config.json`."""
    read: dict[str, Any] = json.loads((PROJECT / ".chalice" / "config.json").read_text())
    return read


def local_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the functions see: the environment, and the checkout's secret where none is named.

    An empty secret in `environ` means that there is none. Raises ConfigurationError.
    """
    environment = {**stage_environment(chalice_configuration(), LOCAL_STAGE), **environ}
    if SECRET not in environment:
        try:
            environment[SECRET] = local_secret(HERALD / "jwt-secret")
        except BrokenSecret as error:
            raise ConfigurationError(str(error)) from None
    return environment


def stage_environment(chalice: Mapping[str, Any], stage: str) -> dict[str, str]:
    """The environment variables that `.chalice/config.json` gives a stage, if it knows it."""
    own = chalice.get("stages", {}).get(stage, {})
    return {**chalice.get("environment_variables", {}), **own.get("environment_variables", {})}


def _number(
    environ: Mapping[str, str], variable: str, default: float, minimum: float, maximum: float
) -> float:
    raw = environ.get(variable, "").strip()
    if not raw:
        return default
    try:
        value = float(raw)
        if not minimum <= value <= maximum:
            raise ValueError
    except ValueError:
        raise ConfigurationError(
            f"{variable} holds {raw!r}; allowed: a number from {minimum:g} to {maximum:g}"
        ) from None
    return value
