"""The account of the emulated AWS, and the environment variables that lead an app to it."""

import os
from collections.abc import Mapping

from gateway.aws.signatures import Credentials

ACCOUNT = "000000000000"
REGION = "us-east-1"
QUEUE_URL = "HERALD_FANOUT_QUEUE_URL"
MANAGEMENT_ENDPOINT = "HERALD_MANAGEMENT_ENDPOINT"
ACCESS_KEY = "AWS_ACCESS_KEY_ID"
SECRET_KEY = "AWS_SECRET_ACCESS_KEY"  # noqa: S105


def credentials_in(variables: Mapping[str, str]) -> Credentials:
    """Return the credentials that an SDK takes from `variables`. Raises KeyError."""
    return Credentials(variables[ACCESS_KEY], variables[SECRET_KEY])


def leading_to(
    endpoint: str, credentials: Credentials, variables: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables that lead an SDK to `endpoint`, and keep it from the user's own account.

    Args:
        endpoint: The URL of the emulated AWS.
        credentials: The only ones that it accepts.
        variables: The environment, whose exceptions from a proxy are kept.
    """
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        ACCESS_KEY: credentials.access_key,
        SECRET_KEY: credentials.secret_key,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        **without_proxy(variables),
    }


def without_proxy(variables: Mapping[str, str]) -> dict[str, str]:
    """Return NO_PROXY with this machine added, in both spellings, since programs read either."""
    current = variables.get("NO_PROXY") or variables.get("no_proxy") or ""
    hosts = [host for host in current.split(",") if host and host != "127.0.0.1"]
    direct = ",".join([*hosts, "127.0.0.1"])
    return {"NO_PROXY": direct, "no_proxy": direct}
