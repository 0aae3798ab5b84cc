"""The names of a deployed stage's resources: `herald-<stage>-…`.

A function on Lambda derives them from its stage, so that they need no variables. `chalice deploy`
can't set a variable to the stage's name, but it names every function after the stage:
`herald-dev`, `herald-dev-sweep`.
"""

import re
from collections.abc import Mapping

PREFIX = "herald-"
FUNCTION_NAME = re.compile(rf"{PREFIX}([a-z][a-z0-9]*)(?:-.*)?")
KEY_SOURCES = ("HERALD_JWT_SECRET", "HERALD_JWT_SECRET_ARN", "HERALD_JWKS_URL")
TABLES = {
    "connections_table": "connections",
    "users_table": "users",
    "groups_table": "groups",
    "messages_table": "messages",
    "history_table": "history",
}


def named(stage: str, resource: str) -> str:
    """Return the name of a stage's resource, such as `herald-dev-users`."""
    return f"{PREFIX}{stage}-{resource}"


def stage_of(environ: Mapping[str, str]) -> str | None:
    """Return the stage of this Lambda function.

    Returns None outside Lambda, and for a function that isn't named like Herald's.
    """
    function = environ.get("AWS_LAMBDA_FUNCTION_NAME")
    if function is None:
        return None
    match = FUNCTION_NAME.fullmatch(function)
    return environ.get("HERALD_STAGE") or (match and match[1]) or None


def stage_defaults(environ: Mapping[str, str]) -> dict[str, object]:
    """Return defaults for `Settings.from_environ`, by field; an empty dict outside Lambda.

    The queue is given by its name, since its URL contains the account's number. The signing key
    that `make resources` makes is used only if no other key source is configured.
    """
    stage = stage_of(environ)
    if stage is None:
        return {}
    defaults: dict[str, object] = {
        "stage": stage,
        **{field: named(stage, table) for field, table in TABLES.items()},
    }
    if "HERALD_FANOUT_QUEUE_URL" not in environ:
        defaults["fanout_queue_url"] = named(stage, "fanout")
    if not any(environ.get(source) for source in KEY_SOURCES):
        defaults["jwt_secret_arn"] = named(stage, "signing-key")
    return defaults
