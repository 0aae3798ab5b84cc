"""What execution environments have in common: Chalice and the SDK, imported before they fork.

The SDK also lists and parses the descriptions of its services for each session. Here that is done
once, for the services that the gateway emulates. Nothing connects, and nothing of the app is read.
"""

import os
from typing import Any

import boto3  # noqa: F401
import botocore.session
import chalice.app  # noqa: F401
from botocore.loaders import Loader, create_loader

SERVICES = ("apigatewaymanagementapi", "dynamodb", "secretsmanager", "sns", "sqs")


def _known_descriptions() -> dict[Any, Any]:
    """Create a client of each service, and return what the session's loader has read for them."""
    session = botocore.session.Session()
    for variable in ("config_file", "credentials_file"):
        session.set_config_variable(variable, os.devnull)
    for service in SERVICES:
        session.create_client(
            service,
            "us-east-1",
            aws_access_key_id="none",
            aws_secret_access_key="none",  # noqa: S106
        )
    known: dict[Any, Any] = vars(session.get_component("data_loader"))["_cache"]
    return known


_KNOWN = _known_descriptions()


def _create_loader(search_path_string: str | None = None) -> Loader:
    """Return a loader as `create_loader` does; without AWS_DATA_PATH, it knows the services."""
    loader = create_loader(search_path_string)
    if search_path_string is None:
        vars(loader)["_cache"].update(_KNOWN)
    return loader


botocore.session.create_loader = _create_loader
