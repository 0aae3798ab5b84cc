"""Prepares Chalice's own commands, before they import the app.

`app.py` calls `prepare` in Chalice's CLI mode alone; this module never travels to Lambda.
"""

import sys
from collections.abc import Mapping, MutableMapping

import click

from chalicelib.settings import Settings, SettingsError

DEPLOYING = ("deploy", "package", "plan", "appgraph")


def prepare(environ: MutableMapping[str, str]) -> None:
    """Change `environ` into the environment that the app is imported with.

    Chalice has added the stage's `environment_variables` already. Raises SystemExit with a message
    if the command can't succeed.
    """
    context = _running_command(environ)
    if context is None:
        return
    if context.info_name == "local":
        _prepare_local(environ, context)
    elif context.info_name in DEPLOYING:
        from infra import preflight

        profile = context.params.get("profile")
        preflight.prepare(environ, context.info_name, context.params["stage"], profile)


def _prepare_local(environ: MutableMapping[str, str], context: click.Context) -> None:
    from gateway.chalice_local import command as chalice_local

    try:
        Settings.from_environ(environ)
    except SettingsError as error:
        chalice_local.stop(str(error))
    options = {name: context.params[name] for name in ("host", "port", "stage")}
    chalice_local.prepare(environ, chalice_local.Arguments(**options))


def _running_command(environ: Mapping[str, str]) -> click.Context | None:
    """Return the context of the command that is running.

    `chalice local` imports the app in a thread. That has no context of its own, so the context is
    made from the command line again.
    """
    context = click.get_current_context(silent=True)
    if context is not None or "CHALICE_WORKER" not in environ or "local" not in sys.argv:
        return context
    from chalice.cli import local

    arguments = sys.argv[sys.argv.index("local") + 1 :]
    return local.make_context("local", arguments, resilient_parsing=True)
