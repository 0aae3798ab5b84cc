"""Run a Lambda authorizer, and read its result as API Gateway does.

https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-use-lambda-authorizer.html
"""

import fnmatch
from collections.abc import Mapping
from typing import Any

from gateway.functions.environments import Environments
from gateway.functions.execution_environment import FunctionError
from gateway.functions.runtime import UNAUTHORIZED

MAX_RESULT_CHARACTERS = 8192


class Refused(Exception):
    """The request or handshake is refused. `status` is what the client gets."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


async def authorize(
    environments: Environments, function: str, event: Mapping[str, Any]
) -> dict[str, Any]:
    """Run an authorizer.

    Returns the `requestContext.authorizer` of the events that follow. Raises Refused with 401 or
    403 as the authorizer decides, and with 500 if it fails or its result is malformed.
    """
    try:
        result = await environments.invoke(function, event)
    except FunctionError as error:
        raise Refused(401 if str(error) == UNAUTHORIZED else 500) from error
    try:
        principal_id = result["principalId"]
        allowed = allows(result["policyDocument"], event["methodArn"])
        context = _context(result.get("context") or {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused(500) from error
    if not allowed:
        raise Refused(403)
    return {**context, "principalId": principal_id, "integrationLatency": 1}


def _context(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the authorizer's own values. Raises ValueError unless they are flat and small."""
    if any(isinstance(value, dict | list) for value in context.values()):
        raise ValueError("the context holds an object or an array")
    if sum(len(str(text)) for pair in context.items() for text in pair) > MAX_RESULT_CHARACTERS:
        raise ValueError("the context is over 8 KB")
    return dict(context)


def allows(policy: Mapping[str, Any], method_arn: str) -> bool:
    """Return whether a policy allows `method_arn`: Deny wins over Allow, and is the default."""
    effects = [
        statement["Effect"]
        for statement in _as_list(policy["Statement"])
        if any(_matches(action, "execute-api:Invoke") for action in _as_list(statement["Action"]))
        and any(_matches(resource, method_arn) for resource in _as_list(statement["Resource"]))
    ]
    return "Allow" in effects and "Deny" not in effects


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _matches(pattern: str, text: str) -> bool:
    """Return whether `text` matches IAM's `*` and `?`. Unlike in fnmatch, `[` is literal."""
    return fnmatch.fnmatchcase(text, pattern.replace("[", "[[]"))
