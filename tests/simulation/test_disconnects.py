"""Disconnects, simulated with fixed seeds; `make fuzz` takes new ones."""

from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

import pytest

from chalicelib.delivery import disconnect
from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.outcomes import OutcomeRecorder
from tests.simulation.disconnects import simulate
from tests.simulation.seeds import first_failure

SEEDS = range(1500)
EVERYTHING = {"died", "refused", "answer lost", "queued", "running", "throttled", "timeout"}


def test_simulated_disconnects_forget_no_open_socket() -> None:
    assert first_failure(simulate, SEEDS, EVERYTHING) is None


# --- The simulation finds mistakes: each of these puts one in


def removes_first(patch: pytest.MonkeyPatch) -> None:
    def remove_first(self: Any, recipients: Any, deadline: Any, *last_frames: Any) -> None:
        removals = {
            self._writers.submit(self._connections.remove, one, 0): one for one in recipients
        }
        done, late = wait(removals, timeout=0)
        for future in late:
            future.cancel()
        self.close_sockets([removals[one] for one in done if not one.exception()], deadline)

    patch.setattr(Disconnector, "disconnect", remove_first)


def takes_every_socket_for_closed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(disconnect, "_is_closed", lambda outcome: True)


def takes_a_handshake_for_a_closed_socket(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Disconnector, "_is_unconfirmed", lambda self, outcome: False)


def removes_rejected_connections_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OutcomeRecorder, "close_sockets", lambda self, recipients, deadline: recipients)


MISTAKES: list[Callable[[pytest.MonkeyPatch], None]] = [
    removes_first,
    takes_every_socket_for_closed,
    takes_a_handshake_for_a_closed_socket,
    removes_rejected_connections_at_once,
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_the_simulation_finds_a_disconnector_that(
    mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    found = first_failure(simulate, SEEDS)
    assert found is not None
    assert "open" in found
