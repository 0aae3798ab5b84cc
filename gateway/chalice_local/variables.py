"""The environment variables of `chalice local`: the stage's limits, with local AWS and tokens."""

import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from gateway.aws.variables import QUEUE_URL, without_proxy
from gateway.chalice_local.emulator import own_emulator
from gateway.configuration import (
    LOCAL_STAGE,
    SECRET,
    chalice_configuration,
    local_variables,
    stage_environment,
)
from gateway.registry import REGISTRY, Entry
from infra.stage import TABLES

CLI_MODE = "AWS_CHALICE_CLI_MODE"
STAGE = "HERALD_STAGE"
TOKEN_VARIABLES = (SECRET, "HERALD_JWT_ISSUER", "HERALD_JWT_AUDIENCE")
RESOURCE_VARIABLE = re.compile(r"HERALD_\w+_(ARN|BUS|ENDPOINT|TABLE|URL)")


def lead_to_local_aws(environ: MutableMapping[str, str], stage: str, owner: int) -> Entry | None:
    """Make `environ` lead to the tables of a running gateway, or to an emulator of `owner`'s own.

    Returns the gateway; None for an own emulator. Raises ConfigurationError and EmulatorError.
    """
    remove_stage_resources(environ, stage)
    queue = environ.pop(QUEUE_URL, None)
    gateway = REGISTRY.newest()
    if gateway is None:
        environ.update(own_emulator(owner, environ))
    else:
        for table in TABLES:
            environ.pop(table, None)
        environ.update(gateway.variables)
    if queue == "":  # set to nothing on purpose: deliver every message at once
        environ[QUEUE_URL] = ""
    environ.update(without_proxy(environ))
    return gateway


def remove_stage_resources(environ: MutableMapping[str, str], stage: str) -> None:
    """Remove what leads to the stage's resources, or to an AWS account of the user's.

    The stage's limits stay. The app accepts the tokens that `make token` makes. Raises
    ConfigurationError.
    """
    configured = stage_environment(chalice_configuration(), stage)
    from_shell = shell_variables(environ, configured)
    local = local_variables(from_shell)
    for name in list(environ):
        of_stage = name in configured and RESOURCE_VARIABLE.fullmatch(name)
        if of_stage or (name.startswith("AWS_") and name != CLI_MODE):
            del environ[name]
    for name in TOKEN_VARIABLES:
        environ.pop(name, None)
        if name in local:
            environ[name] = local[name]
    environ[STAGE] = from_shell.get(STAGE) or LOCAL_STAGE


def shell_variables(
    environ: Mapping[str, str],
    configured: Mapping[str, str],
    initial: Path = Path("/proc/self/environ"),
) -> dict[str, str]:
    """Return the shell's variables without those of Chalice's configuration.

    Chalice has overwritten the shell's values with its own. Linux still shows the values with
    which the process started, in `initial`; without that file, these names are left out.
    """
    variables = {name: value for name, value in environ.items() if name not in configured}
    try:
        text = initial.read_text(errors="surrogateescape")
    except OSError:
        return variables
    at_start = dict(line.split("=", 1) for line in text.split("\0") if "=" in line)
    return {**variables, **{name: at_start[name] for name in at_start.keys() & configured.keys()}}
