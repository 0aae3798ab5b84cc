"""Running a Lambda authorizer, and reading its verdict as API Gateway does.

https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-use-lambda-authorizer.html
"""

import fnmatch
from collections.abc import Mapping
from typing import Any

from gateway.functions.environments import Environments, FunctionError
from gateway.functions.runtime import UNAUTHORIZED

MAX_RESULT_CHARACTERS = 8192


class Refused(Exception):
    """The request goes no further. `status` is 401, 403, or 500 for a broken authorizer."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


async def authorize(
    environments: Environments, function: str, event: Mapping[str, Any]
) -> dict[str, Any]:
    """The context for `requestContext.authorizer` of an authorizer's verdict. Raises Refused."""
    try:
        result = await environments.invoke(function, event)
    except FunctionError as error:
        raise Refused(401 if str(error) == UNAUTHORIZED else 500) from error
    try:
        principal_id = result["principalId"]
        allowed = _allows(result["policyDocument"], event["methodArn"])
        context = _context(result.get("context") or {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused(500) from error
    if not allowed:
        raise Refused(403)
    return {**context, "principalId": principal_id, "integrationLatency": 1}


def _context(context: Mapping[str, Any]) -> dict[str, Any]:
    """The authorizer's own values; they must be flat, and small."""
    if any(isinstance(value, dict | list) for value in context.values()):
        raise ValueError("the context holds an object or an array")
    if sum(len(str(part)) for pair in context.items() for part in pair) > MAX_RESULT_CHARACTERS:
        raise ValueError("the context is over 8 KB")
    return dict(context)


def _allows(policy: Mapping[str, Any], method_arn: str) -> bool:
    """Whether a policy lets `method_arn` be invoked: a deny wins, and nothing said is a deny."""
    effects = [
        statement["Effect"]
        for statement in _listed(policy["Statement"])
        if any(_matches(action, "execute-api:Invoke") for action in _listed(statement["Action"]))
        and any(_matches(resource, method_arn) for resource in _listed(statement["Resource"]))
    ]
    return "Allow" in effects and "Deny" not in effects


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _matches(pattern: str, text: str) -> bool:
    """IAM's wildcards: `*` and `?`; a bracket is a bracket."""
    return fnmatch.fnmatchcase(text, pattern.replace("[", "[[]"))
