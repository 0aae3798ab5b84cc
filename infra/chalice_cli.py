"""What happens before one of Chalice's commands imports the app.

`app.py` calls `prepare` in Chalice's CLI mode, and nowhere else. Nothing of this is on Lambda.
"""

import sys
from collections.abc import Mapping, MutableMapping

import click

from chalicelib.settings import Settings, SettingsError

DEPLOYING = ("deploy", "package", "plan", "appgraph")


def prepare(environ: MutableMapping[str, str]) -> None:
    """Make `environ` what the app is imported with. Raises SystemExit with a line to print.

    Chalice has put the stage's `environment_variables` into `environ` before.
    """
    context = _command(environ)
    if context is None:
        return
    if context.info_name == "local":
        from gateway.chalice_local import command as chalice_local

        try:
            Settings.from_environ(environ)
        except SettingsError as error:
            chalice_local.stop(str(error))
        told = {name: context.params[name] for name in ("host", "port", "stage")}
        chalice_local.prepare(environ, chalice_local.Arguments(**told))
    elif context.info_name in DEPLOYING:
        from infra import preflight

        profile = context.params.get("profile")
        preflight.prepare(environ, context.info_name, context.params["stage"], profile)


def _command(environ: Mapping[str, str]) -> click.Context | None:
    """Return the running command.

    `chalice local` imports the app in a thread, which has no context of its own.
    """
    context = click.get_current_context(silent=True)
    if context is not None or "CHALICE_WORKER" not in environ or "local" not in sys.argv:
        return context
    from chalice.cli import local

    arguments = sys.argv[sys.argv.index("local") + 1 :]
    return local.make_context("local", arguments, resilient_parsing=True)
