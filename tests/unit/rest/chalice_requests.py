"""Requests to REST routes, as Chalice hands them over."""

import time
from types import SimpleNamespace
from typing import Any

from chalice.app import Request

from chalicelib.auth.access import AccessRules
from chalicelib.auth.principal import Principal
from chalicelib.settings import Settings

CALLER = Principal("alice", int(time.time()) + 600, tenant="acme", scopes=frozenset())
CONTEXT: Any = SimpleNamespace(get_remaining_time_in_millis=lambda: 60_000)


def chalice_request(
    caller: Principal = CALLER, *, source_ip: str = "127.0.0.1", headers: Any = None, body: str = ""
) -> Request:
    return Request(
        {
            "multiValueQueryStringParameters": None,
            "pathParameters": {},
            "headers": headers or {},
            "body": body,
            "isBase64Encoded": False,
            "stageVariables": None,
            "requestContext": {
                "httpMethod": "GET",
                "resourcePath": "/",
                "authorizer": caller.to_context(),
                "identity": {"sourceIp": source_ip},
            },
        }
    )


def uncharged(_: Principal) -> None:
    """Charge nobody."""


def rules(**variables: str) -> AccessRules:
    return AccessRules(Settings.from_environ({"HERALD_JWT_SECRET": "x" * 32, **variables}))
