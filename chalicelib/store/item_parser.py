"""Parses the items in DynamoDB's responses, which takes the SDK five times as long.

The SDK walks its model of the response for every value. But the items of a response already have
the form that Herald uses: only binary values have to be decoded, since JSON carries them in base64.
The rest of a response, every error among it, is left to the SDK.
"""

import json
from base64 import b64decode
from collections.abc import Iterable
from typing import Any

from chalicelib.store.schema import Item

ITEMS_OF = {"Query": "Items", "Scan": "Items", "BatchGetItem": "Responses"}
"""The operations whose responses have many items, and the part of the response that has them."""

SUCCESS = 200


def parse_items(
    operation_model: Any,
    response_dict: dict[str, Any],
    customized_response_dict: dict[str, Any],
    **_: Any,
) -> None:
    """Parse the items of a response, and take them out of the body that the SDK parses after this.

    Handles botocore's event `before-parse`. botocore compares DynamoDB's checksum of a response
    with what it received, not with this body.
    """
    body = response_dict["body"]
    if response_dict["status_code"] != SUCCESS or not body:
        return
    try:
        response = json.loads(body.decode())
    except ValueError:
        return  # the SDK and `runtime.aws` know what to do with a body that isn't JSON
    part = ITEMS_OF[operation_model.name]
    if not isinstance(response, dict) or not response.get(part):
        return
    found = response.pop(part)
    if b'"B"' in body or b'"BS"' in body:
        for items in found.values() if part == "Responses" else (found,):
            for item in items:
                _decode(item.values())
    customized_response_dict[part] = found
    response_dict["body"] = json.dumps(response).encode()


def _decode(values: Iterable[Item]) -> None:
    """Decode binary values, in place."""
    for value in values:
        for kind, content in value.items():
            match kind:
                case "B":
                    value["B"] = b64decode(content)
                case "BS":
                    value["BS"] = [b64decode(one) for one in content]
                case "L":
                    _decode(content)
                case "M":
                    _decode(content.values())
