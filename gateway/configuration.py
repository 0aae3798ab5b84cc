"""The gateway's configuration, from the environment and `.chalice/config.json`."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.local_hosts import ALLOWED_HOSTS
from gateway.local_secret import BrokenSecret, local_secret
from infra.mock_routes import MOCK_ROUTES

PROJECT = Path(__file__).resolve().parent.parent
HERALD = PROJECT / ".herald"
"""The folder in which the commands keep their files; Git ignores it."""
SECRET_FILE = HERALD / "jwt-secret"
LOCAL_STAGE = "local"
SECRET = "HERALD_JWT_SECRET"  # noqa: S105
MAX_PORT = 65535
HOST_NAME = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
INTEGRATION_SECONDS = 29.0  # how long API Gateway waits for a function

RouteDefinition = Mapping[str, Mapping[str, Any]]
"""The parameters with which API Gateway's operations create a route and what belongs to it:
`Route`, `Integration`, `IntegrationResponse` and, unless nothing is sent back, `RouteResponse`."""


class ConfigurationError(ValueError):
    """A variable has a wrong value. The text names it and says what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The gateway's settings. Durations are in seconds; port 0 stands for a free port.

    The limits default to API Gateway's:
    https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-execution-service-websocket-limits-table.html
    """

    host: str = "127.0.0.1"
    allowed_hosts: frozenset[str] = frozenset()
    """The hosts, beside this machine's own, that requests may name."""
    port: int = 8000
    idle_timeout: float = 600.0
    max_duration: float = 7200.0
    integration_timeout: float = INTEGRATION_SECONDS
    function_timeout: float = 60.0
    closing_timeout: float = 10.0
    """The time that a client has to read its queue and answer a close frame."""
    stop_timeout: int = 3
    """The time that a stop waits for functions."""
    concurrency: int = 16
    """The largest number of execution environments."""
    schedule_period: float | None = None
    """The period of scheduled functions; None takes it from their schedules."""
    variables: Mapping[str, str]
    """The environment variables of the functions, without those that lead to AWS."""
    project: Path = PROJECT
    """The folder of `app.py`."""
    mock_routes: tuple[RouteDefinition, ...] = ()
    """The WebSocket routes that no function serves."""


def configuration(environ: Mapping[str, str], *, secret_file: Path = SECRET_FILE) -> Configuration:
    """Read HOST, PORT and the GATEWAY_* variables. Raises ConfigurationError."""
    chalice = chalice_configuration()
    return Configuration(
        host=environ.get("HOST") or "127.0.0.1",
        port=_port(environ),
        allowed_hosts=host_names(environ),
        idle_timeout=_number(environ, "GATEWAY_IDLE_TIMEOUT_SECONDS", 600, 0.1, 86400),
        max_duration=_number(environ, "GATEWAY_MAX_DURATION_SECONDS", 7200, 0.1, 86400),
        integration_timeout=_number(
            environ, "GATEWAY_INTEGRATION_TIMEOUT_SECONDS", INTEGRATION_SECONDS, 0.05, 300
        ),
        function_timeout=float(chalice.get("lambda_timeout", 60)),
        concurrency=int(_number(environ, "GATEWAY_CONCURRENCY", 16, 1, 256)),
        schedule_period=_number(environ, "GATEWAY_SCHEDULE_SECONDS", 0, 0.2, 86400) or None,
        variables=local_variables(environ, secret_file=secret_file),
        mock_routes=MOCK_ROUTES if _switch(environ, "GATEWAY_MOCK_ROUTES") else (),
    )


def _switch(environ: Mapping[str, str], name: str) -> bool:
    """Return a setting that is on unless it is `false`. Raises ConfigurationError."""
    raw = environ.get(name) or "true"
    if raw not in ("true", "false"):
        raise ConfigurationError(f"{name} holds {raw!r}; allowed: true or false")
    return raw == "true"


def _port(environ: Mapping[str, str]) -> int:
    port = _number(environ, "PORT", 8000, 0, MAX_PORT)
    if port != int(port):
        raise ConfigurationError(
            f"PORT holds {environ['PORT']!r}; allowed: a number from 0 to {MAX_PORT}"
            " without a fraction"
        )
    return int(port)


def host_names(environ: Mapping[str, str]) -> frozenset[str]:
    """Return the names in GATEWAY_ALLOWED_HOSTS. Raises ConfigurationError."""
    raw = environ.get(ALLOWED_HOSTS, "")
    hosts = frozenset(name for part in raw.split(",") if (name := part.strip()))
    if not all(map(HOST_NAME.fullmatch, hosts)):
        raise ConfigurationError(
            f"{ALLOWED_HOSTS} holds {raw!r}; allowed: names and addresses without a port,"
            " separated by commas"
        )
    return hosts


def chalice_configuration() -> dict[str, Any]:
    """Read `.chalice/config.json`."""
    config: dict[str, Any] = json.loads((PROJECT / ".chalice" / "config.json").read_text())
    return config


def local_variables(
    environ: Mapping[str, str], *, secret_file: Path = SECRET_FILE
) -> dict[str, str]:
    """Return the variables of the stage `local`, overridden by `environ`, with a signing secret.

    Without a secret in either, it is the checkout's. An empty one in `environ` means that tokens
    come from an identity provider. Raises ConfigurationError.
    """
    variables = {**stage_environment(chalice_configuration(), LOCAL_STAGE), **environ}
    if SECRET not in variables:
        try:
            variables[SECRET] = local_secret(secret_file)
        except BrokenSecret as error:
            raise ConfigurationError(str(error)) from None
    return variables


def stage_environment(chalice: Mapping[str, Any], stage: str) -> dict[str, str]:
    """Return the environment variables of a stage; those of all stages if it isn't configured."""
    own = chalice.get("stages", {}).get(stage, {})
    return {**chalice.get("environment_variables", {}), **own.get("environment_variables", {})}


def _number(
    environ: Mapping[str, str], variable: str, default: float, minimum: float, maximum: float
) -> float:
    """Return a variable's number; `default` if it is unset or empty. Raises ConfigurationError."""
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
