"""Both ways in which execution environments start."""

from collections.abc import Iterator

import pytest

from gateway.configuration import PROJECT
from gateway.functions import execution_environment
from gateway.machine.forks import ForkServer


@pytest.fixture(params=[True, False], ids=["forked", "spawned"])
def own_processes(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Let environments be processes that this thread, or a fork server of its own, has started."""
    modules = "gateway.functions.preloaded", "gateway.functions.runtime"
    server = ForkServer(*modules, folder=PROJECT, hidden="AWS_")
    monkeypatch.setattr(execution_environment, "FORKS", request.param)
    monkeypatch.setattr(execution_environment, "_server", server)
    execution_environment.prepare()
    yield
    server.stop()
