"""The construction of Herald's parts, and the modules that `import app` loads."""

import subprocess
import sys
import threading
from concurrent.futures import Executor
from functools import cached_property
from typing import Any

import pytest
from botocore.client import BaseClient

from chalicelib.auth.access import AccessRules
from chalicelib.auth.principal import Principal, Scope
from chalicelib.auth.verifier import TokenVerifier
from chalicelib.clock import EpochMs
from chalicelib.protocol.messages import accept, parse_message
from chalicelib.protocol.reports import Report
from chalicelib.protocol.ulid import Stamp
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import Metrics
from chalicelib.settings import Settings
from chalicelib.wiring import Herald
from gateway.configuration import PROJECT
from tests.support import world


def test_the_authorizers_need_no_sdk() -> None:
    """Importing the SDK takes longer than everything else that an authorizer does."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import app, sys; print(*sys.modules)"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "chalicelib.auth.authorizers" in loaded
    # Powertools imports the bare package `botocore`, which takes a millisecond, and nothing in it.
    assert [name for name in loaded if name == "boto3" or name.startswith("botocore.")] == []


def test_every_part_can_be_built_without_a_call_to_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    this_thread = threading.get_ident()
    call = BaseClient._make_api_call  # type: ignore[attr-defined]  # The stubs leave it out.

    def refuse(client: BaseClient, *arguments: Any) -> Any:
        # Other threads of this process serve the local gateway, which polls its queues.
        assert threading.get_ident() != this_thread, "a call to AWS"
        return call(client, *arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", refuse)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    settings = Settings(jwt_secret="s" * 32)
    herald = Herald.on_aws(
        settings,
        verify=TokenVerifier(settings).verify,
        rules=AccessRules(settings),
        metrics=Metrics("test"),
    )
    parts = [name for name, part in vars(Herald).items() if isinstance(part, cached_property)]
    assert len(parts) > 20
    assert None not in [getattr(herald, name) for name in parts]


class Busy(Executor):
    """An executor that must not be used, since its threads are at work for long."""

    def submit(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("all writers are busy")


def test_a_roster_is_read_while_all_writers_are_busy(life: Any) -> None:
    """A broadcast that finds many connections gone writes for longer than it reads."""
    place = world.World()
    socket = place.connect("alice")
    herald = world.Herald(life, place, writers=Busy())
    herald.lifecycle.on_connect(socket.event())
    socket.state = "open"
    draft = parse_message({"to": {"all": True}, "data": 1}, may_encrypt=False)
    messages = accept([draft], sender="server", stamp=Stamp.fresh(EpochMs(place.now)))
    sender = Principal("server", 10**12, scopes=world.SCOPES | {Scope.MESSAGES_BROADCAST})
    [report] = herald.dispatcher.send(messages, sender, Deadline.after(world.NEVER))
    assert isinstance(report, Report)
    assert report.to_dict()["delivered"] == 1
