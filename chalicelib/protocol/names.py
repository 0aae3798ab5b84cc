"""The limits of the names of users, tenants and groups, and of the ids of connections. No I/O.

Names are parts of DynamoDB's keys, whose limits are in bytes: 2,048 for a partition key, 1,024 for
a sort key. The longest key has a percent-encoded tenant, which has three characters for each byte,
and another name (see `store/schema.py`).
"""

MAX_NAME_CHARACTERS = 128
MAX_NAME_BYTES = 256  # in UTF-8
NAME_LIMITS = f"1 to {MAX_NAME_CHARACTERS} characters, at most {MAX_NAME_BYTES} bytes of UTF-8"


def is_name(text: str) -> bool:
    """Return whether `text` has the length of a name. A lone surrogate counts as three bytes."""
    return (
        1 <= len(text) <= MAX_NAME_CHARACTERS
        and len(text.encode(errors="surrogatepass")) <= MAX_NAME_BYTES
    )
