from pathlib import Path

import pytest

from gateway import configuration as module
from gateway.aws.variables import without_proxy
from gateway.configuration import ConfigurationError, configuration


@pytest.fixture
def herald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the checkout's own files are."""
    monkeypatch.setattr(module, "HERALD", tmp_path)
    return tmp_path


def test_where_no_secret_is_named_the_checkouts_signs(herald: Path) -> None:
    made = configuration({}).environment["HERALD_JWT_SECRET"]
    assert made == (herald / "jwt-secret").read_text().strip()


@pytest.mark.parametrize("named", ["a-secret-of-the-shell", "", " "])
def test_a_secret_of_the_shell_wins_and_an_empty_one_means_none(herald: Path, named: str) -> None:
    assert configuration({"HERALD_JWT_SECRET": named}).environment["HERALD_JWT_SECRET"] == named
    assert list(herald.iterdir()) == []


def test_a_broken_secret_is_a_wrong_configuration(herald: Path) -> None:
    (herald / "jwt-secret").touch()
    with pytest.raises(ConfigurationError, match="delete it"):
        configuration({})


@pytest.mark.parametrize(
    ("environment", "direct"),
    [
        ({}, "127.0.0.1"),
        ({"NO_PROXY": "a.example"}, "a.example,127.0.0.1"),
        ({"no_proxy": "a.example"}, "a.example,127.0.0.1"),
        ({"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}, "127.0.0.1"),
    ],
)
def test_this_machine_is_reached_without_a_proxy(environment: dict[str, str], direct: str) -> None:
    assert without_proxy(environment) == {"NO_PROXY": direct, "no_proxy": direct}
