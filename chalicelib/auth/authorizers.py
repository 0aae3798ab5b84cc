"""The results of Lambda authorizers, in the form that API Gateway expects.

https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-lambda-authorizer-output.html
"""

import os
import re
from typing import Any, Literal

from chalice.app import AuthRoute, Chalice

from chalicelib.auth.principal import Principal

PATH_PARAMETER = re.compile(r"\{[^}]*\}")


def routes(app: Chalice) -> list[str | AuthRoute]:
    """Return the routes of `app` that need an authorizer, with `*` for path parameters."""
    guarded = {
        path: [method for method, route in methods.items() if route.authorizer is not None]
        for path, methods in app.routes.items()
    }
    return [AuthRoute(PATH_PARAMETER.sub("*", path), methods) for path, methods in guarded.items()]


def allow(method_arn: str, principal: Principal) -> dict[str, Any]:
    """Return a result that lets `principal` call `method_arn`, and passes it to the handlers."""
    return {**_policy("Allow", method_arn, principal.user_id), "context": principal.to_context()}


def deny(method_arn: str) -> dict[str, Any]:
    """Return a result that makes API Gateway answer 403."""
    return _policy("Deny", method_arn, "refused")


def _policy(effect: Literal["Allow", "Deny"], method_arn: str, principal_id: str) -> dict[str, Any]:
    statement = {"Action": "execute-api:Invoke", "Effect": effect, "Resource": method_arn}
    return {
        "principalId": principal_id,
        "policyDocument": {"Version": "2012-10-17", "Statement": [statement]},
    }


def unauthorized() -> Exception:
    """Return the exception to raise for API Gateway to answer 401.

    API Gateway looks for exactly this text. `chalice local` answers 401 only to an exception of
    its own; any other one breaks the client's connection.
    """
    if "AWS_CHALICE_CLI_MODE" not in os.environ:
        return Exception("Unauthorized")
    from chalice.local import NotAuthorizedError  # not packaged for Lambda

    return NotAuthorizedError(
        {"x-amzn-ErrorType": "UnauthorizedException"}, b'{"message":"Unauthorized"}'
    )
