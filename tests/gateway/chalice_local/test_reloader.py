"""The files whose changes restart the worker of `chalice local`."""

from pathlib import Path
from typing import Any

import pytest
from chalice.cli.filewatch.stat import StatFileWatcher

from gateway.chalice_local import reloader


def test_only_a_change_of_the_app_or_of_other_state_restarts_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = tmp_path / "app.py"
    app.write_text("one")
    monkeypatch.setattr(reloader, "WATCHED", [app, tmp_path / "chalicelib"])
    monkeypatch.setattr(StatFileWatcher, "_single_pass_poll", None)
    state = ["first"]
    restarts: list[str] = []

    def restarted() -> bool:
        restarts.clear()
        look: Any = StatFileWatcher._single_pass_poll
        look(None, str(tmp_path), lambda: restarts.append("restart"))
        return bool(restarts)

    reloader.watch_project(lambda: state[0])
    assert not restarted()
    (tmp_path / "log").write_text("not of the app")
    assert not restarted()
    (tmp_path / "chalicelib").mkdir()
    (tmp_path / "chalicelib" / "new.py").touch()
    assert restarted()
    (tmp_path / "chalicelib" / "new.py").unlink()
    state[0] = "second"
    assert restarted()
