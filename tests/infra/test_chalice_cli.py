"""The commands of Chalice that are prepared."""

from pathlib import Path

import pytest

from tests.infra.commands import prepare


@pytest.mark.parametrize("command", ["logs", "url", "gen-policy"])
def test_commands_that_do_not_deploy_are_left_alone(project: Path, command: str) -> None:
    assert prepare(command) == {}
    assert not (project / ".chalice" / "policies").exists()
