"""Runs the steps of Chalice's commands before they import the app."""

import json
from pathlib import Path

import click

from infra import chalice_cli


def prepare(
    command: str,
    stage: str = "dev",
    *,
    configured: dict[str, str] | None = None,
    profile: str | None = None,
    **shell: str,
) -> dict[str, str]:
    """Run a command up to the app's import, and return the environment that the app sees.

    `configured` has the stage's variables in `.chalice/config.json`, which take precedence over
    those of the shell.
    """
    path = Path(".chalice") / "config.json"
    config = json.loads(path.read_text())
    config["stages"][stage] = {"environment_variables": configured or {}}
    path.write_text(json.dumps(config))
    environ = {**shell, **(configured or {})}
    with click.Context(click.Command(command), info_name=command) as context:
        context.params = {"stage": stage, "profile": profile}
        chalice_cli.prepare(environ)
    return environ
