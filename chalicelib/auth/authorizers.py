"""What a Lambda authorizer answers, in the words that API Gateway understands.

https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-lambda-authorizer-output.html
"""

import os
import re
from typing import Any, Literal

from chalice.app import AuthRoute, Chalice

from chalicelib.auth.principal import Principal

PARAMETER = re.compile(r"\{[^}]*\}")


def routes(app: Chalice) -> list[str | AuthRoute]:
    """The routes of `app` that an authorizer guards."""
    guarded = {
        path: [method for method, entry in entries.items() if entry.authorizer is not None]
        for path, entries in app.routes.items()
    }
    return [AuthRoute(PARAMETER.sub("*", path), methods) for path, methods in guarded.items()]


def allow(method_arn: str, principal: Principal) -> dict[str, Any]:
    """Let `principal` call `method_arn`, and tell the handlers who they are."""
    return {**_policy("Allow", method_arn, principal.user_id), "context": principal.to_context()}


def deny(method_arn: str) -> dict[str, Any]:
    """Refuse with 403."""
    return _policy("Deny", method_arn, "refused")


def _policy(effect: Literal["Allow", "Deny"], method_arn: str, principal_id: str) -> dict[str, Any]:
    statement = {"Action": "execute-api:Invoke", "Effect": effect, "Resource": method_arn}
    return {
        "principalId": principal_id,
        "policyDocument": {"Version": "2012-10-17", "Statement": [statement]},
    }


def unauthorized() -> Exception:
    """The exception that an authorizer raises to refuse with 401.

    API Gateway looks for exactly this text. `chalice local` lets every exception but its own
    break the client's connection, so there it is its own, with the same text.
    """
    if "AWS_CHALICE_CLI_MODE" not in os.environ:
        return Exception("Unauthorized")
    from chalice.local import NotAuthorizedError  # not packaged for Lambda

    return NotAuthorizedError(
        {"x-amzn-ErrorType": "UnauthorizedException"}, b'{"message":"Unauthorized"}'
    )
