"""The local secret: random, private, and the same for every process of a checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

from chalicelib.settings import LOCAL_SECRET, MIN_SECRET_BYTES
from gateway import local_secret as module
from gateway.configuration import PROJECT
from gateway.local_secret import BrokenSecret, local_secret

ASK = "import pathlib, sys; from gateway.local_secret import local_secret; sys.stdin.read(1);"
PRINT = f"{ASK} print(local_secret(pathlib.Path(sys.argv[1])))"


def test_a_secret_is_random_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    paths = [tmp_path / "one" / "jwt-secret", tmp_path / "two" / "jwt-secret"]
    secrets = [local_secret(path) for path in paths]
    assert secrets[0] != secrets[1]
    assert all(secret.startswith(LOCAL_SECRET) for secret in secrets)
    assert len(secrets[0]) - len(LOCAL_SECRET) > MIN_SECRET_BYTES
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o600, 0o600]
    assert [local_secret(path) for path in paths] == secrets
    assert list(paths[0].parent.iterdir()) == [paths[0]]


def test_the_app_recognizes_a_local_secret_by_its_prefix() -> None:
    assert module.PREFIX == LOCAL_SECRET


def test_eight_processes_that_create_a_secret_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / ".herald" / "jwt-secret"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PRINT, str(path)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go")
        process.stdin.flush()
    printed = {process.communicate()[0].strip() for process in processes}
    assert printed == {path.read_text().strip()}


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"local-", b"local-too-short", b"x" * 60, b"local-\xff" + b"x" * 60],
)
def test_a_broken_file_is_reported_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jwt-secret"
    path.write_bytes(content)
    with pytest.raises(BrokenSecret) as broken:
        local_secret(path)
    assert str(broken.value).startswith(f"{path} doesn't hold a local signing secret. Delete it")
    assert "too-short" not in str(broken.value)


def test_an_unreadable_file_is_reported_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "jwt-secret").mkdir(mode=0o700)
    with pytest.raises(BrokenSecret, match=r"Is a directory.*delete it"):
        local_secret(tmp_path / "jwt-secret")


def test_a_file_that_others_can_read_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "jwt-secret"
    secret = local_secret(path)
    path.chmod(0o644)
    assert local_secret(path) == secret
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_holds_only_the_secret(tmp_path: Path) -> None:
    """A program may read the whole file to get the secret."""
    path = tmp_path / "jwt-secret"
    assert local_secret(path) == path.read_text()
