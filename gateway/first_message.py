"""The shell command with which a user sends a first message."""

import json


def curl(http: str, bearer: str) -> str:
    """Return a command that sends a greeting to Bob."""
    body = json.dumps({"to": {"users": ["bob"]}, "data": {"text": "Hello, Bob"}})
    return f"""  curl {http}/messages \\
    -H 'Authorization: Bearer {bearer}' \\
    -H 'Content-Type: application/json' \\
    -d '{body}'
"""
