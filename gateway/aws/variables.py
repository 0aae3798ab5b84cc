"""The environment variables that lead an app, and its SDK, to the emulated AWS."""

import os
from collections.abc import Mapping

REGION = "us-east-1"
QUEUE_URL = "HERALD_FANOUT_QUEUE_URL"
MANAGEMENT_ENDPOINT = "HERALD_MANAGEMENT_ENDPOINT"


def leading_to(endpoint: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what an SDK needs: nothing of the user's own configuration is read beside it."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        **without_proxy(environment),
    }


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what has this machine reached directly, and whatever was before.

    Where both spellings are there, some programs obey the one and some the other.
    """
    known = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    hosts = [host for host in known.split(",") if host and host != "127.0.0.1"]
    direct = ",".join([*hosts, "127.0.0.1"])
    return {"NO_PROXY": direct, "no_proxy": direct}
