"""The line that a user pastes to send a first message."""

import json


def curl(http: str, bearer: str) -> str:
    """Return a command for a shell that greets Bob."""
    body = json.dumps({"to": {"users": ["bob"]}, "data": {"text": "Hello, Bob"}})
    return f"""  curl {http}/messages \\
    -H 'Authorization: Bearer {bearer}' \\
    -H 'Content-Type: application/json' \\
    -d '{body}'
"""
