"""`make` in a fresh clone: pip creates real environments from a package index of the test's own."""

import fcntl
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from gateway.configuration import PROJECT
from tests.support.clients import eventually

WHEEL = "slow-1-py3-none-any.whl"
OTHER_HASH = "0" * 64
WAIT_SECONDS = 50.0
GATEWAY = "import sys\n\nprint('a token for', *sys.argv[2:])\n"
LIAR = f"""#!/bin/sh
# A Python that reports an older version.
[ "$1" = -c ] && exit 0
shift 2
exec {sys.executable} -c 'import runpy, sys
sys.version_info = (3, 10, 13, "final", 0)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")' "$@"
"""


class Index:
    """A package index with one package, `slow`; it answers once `released` is set."""

    def __init__(self) -> None:
        self.asked, self.released = Event(), Event()
        self.asked_times = 0
        self.url = ""

    def page(self, path: str) -> bytes | None:
        """Return the body for a path; None for 404."""
        if path == "/simple/slow/":
            self.asked_times += 1
            self.asked.set()
            self.released.wait(WAIT_SECONDS)
            return f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
        return wheel() if path == f"/{WHEEL}" else None


def wheel() -> bytes:
    """Return the wheel of `slow`.

    https://packaging.python.org/en/latest/specifications/binary-distribution-format/
    """
    files = {
        "slow.py": "",
        "slow-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: slow\nVersion: 1\n",
        "slow-1.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        "slow-1.dist-info/RECORD": "",
    }
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # with a fixed date, so the hash is fixed
    return written.getvalue()


def locked(sha256: str) -> str:
    """Return a requirements file that accepts `slow` with this hash only."""
    return f"slow==1 --hash=sha256:{sha256}\n"


@pytest.fixture
def index() -> Iterator[Index]:
    served = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = served.page(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header(
                "Content-Type", "text/html" if self.path[-1] == "/" else "application/zip"
            )
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        served.url = f"http://127.0.0.1:{server.server_port}/simple"
        yield served
        served.released.set()
        server.shutdown()
        serving.join()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh clone whose commands need one package, and only print their arguments."""
    folder = tmp_path / "herald"
    (folder / "gateway").mkdir(parents=True)
    (folder / "gateway" / "__main__.py").write_text(GATEWAY)
    shutil.copytree(PROJECT / "tools", folder / "tools")
    shutil.copy(PROJECT / "Makefile", folder)
    shutil.copytree(PROJECT / "requirements", folder / "requirements")
    (folder / "requirements.txt").touch()
    (folder / "requirements-dev.in").write_text("-r requirements.txt\nslow==1\n")
    (folder / "requirements-dev.txt").write_text(locked(hashlib.sha256(wheel()).hexdigest()))
    return folder


Make = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def make(clone: Path, index: Index) -> Iterator[Make]:
    """Start `make` in the clone; kill processes that outlive the test."""
    started: list[subprocess.Popen[str]] = []
    # Neither pip's settings nor the flags of a `make` that runs these tests are the newcomer's.
    others = ("PIP_", "MAKE", "MFLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    environment = {
        **kept,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": index.url,
        "PIP_NO_CACHE_DIR": "1",
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }

    def start(*arguments: str, python: str = sys.executable) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            ["make", "-s", f"PYTHON={python}", *arguments],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a process group, as a shell creates
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.timeout(150)
def test_ctrl_c_during_a_set_up_prints_no_traceback_and_stops_every_process(
    clone: Path, index: Index, make: Make
) -> None:
    interrupted = make("token", "USER=alice")
    assert index.asked.wait(WAIT_SECONDS)
    os.killpg(interrupted.pid, signal.SIGINT)
    out, err = interrupted.communicate(timeout=WAIT_SECONDS)
    assert interrupted.returncode in (130, -signal.SIGINT)  # a shell reports both as 130
    assert out == ""
    assert "Interrupted. The next make starts the set-up again.\n" in err
    assert "Traceback" not in err
    assert "cancelled" not in err  # pip's message
    eventually(lambda: not group_lives(interrupted.pid))
    with (clone / ".herald" / "set-up.lock").open() as lock:  # free only once pip has ended, too
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # The next test shows that such an environment is recreated.
    assert (clone / ".venv" / ".half-made").exists()
    assert not (clone / ".venv" / ".ready").exists()


@pytest.mark.timeout(150)
def test_an_unfinished_environment_is_recreated_while_another_command_waits(
    clone: Path, index: Index, make: Make
) -> None:
    (clone / ".venv").mkdir()
    for left in (".half-made", "of-a-set-up-that-was-killed"):
        (clone / ".venv" / left).touch()
    first = make("token", "USER=alice")
    assert index.asked.wait(WAIT_SECONDS)
    second = make("token", "USER=bob")
    assert second.stderr is not None
    line = second.stderr.readline()
    assert line.startswith("Another shell is setting up this checkout (process ")
    assert line.endswith("). Waiting for it.\n")
    index.released.set()
    out, err = first.communicate(timeout=WAIT_SECONDS)
    assert (first.returncode, out) == (0, "a token for alice\n"), err
    assert err.startswith(f"Setting up .venv with Python {sys.version.split()[0]}, once.\n")
    out, err = second.communicate(timeout=WAIT_SECONDS)
    assert (second.returncode, out) == (0, "a token for bob\n"), err
    assert "Setting up" not in err
    assert index.asked_times == 1
    files = {path.name for path in (clone / ".venv").iterdir() if path.is_file()}
    assert files - {".gitignore"} == {".ready", "pyvenv.cfg"}  # Python 3.13 writes .gitignore


def test_an_environment_that_the_user_created_is_kept_and_installed_into(
    clone: Path, index: Index, make: Make
) -> None:
    venv = clone / ".venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", venv], check=True
    )
    (venv / "mine").touch()
    index.released.set()
    done = make("token", "USER=alice")
    out, err = done.communicate(timeout=WAIT_SECONDS)
    assert (done.returncode, out) == (0, "a token for alice\n"), err
    assert "without hashes" not in err
    assert "once. It was not created by make, so it is kept.\n" in err
    assert (venv / "mine").exists()
    subprocess.run([venv / "bin" / "python", "-c", "import slow"], check=True)


def test_a_package_with_another_hash_is_refused(clone: Path, index: Index, make: Make) -> None:
    (clone / "requirements-dev.txt").write_text(locked(OTHER_HASH))
    index.released.set()
    refused = make("token", "USER=alice")
    out, err = refused.communicate(timeout=WAIT_SECONDS)
    assert refused.returncode != 0
    assert out == ""
    assert f"Expected sha256 {OTHER_HASH}" in err
    assert not (clone / ".venv" / ".ready").exists()


def test_a_package_that_the_team_has_just_added_is_installed_without_hashes(
    clone: Path, index: Index, make: Make
) -> None:
    (clone / "requirements-dev.in").write_text("-r requirements.txt\n")
    (clone / "requirements-dev.txt").write_text("")
    (clone / "requirements.txt").write_text("Slow==1\n")
    index.released.set()
    done = make("token", "USER=alice")
    out, err = done.communicate(timeout=WAIT_SECONDS)
    assert (done.returncode, out) == (0, "a token for alice\n"), err
    assert "requirements-dev.txt has no hashes for Slow==1." in err
    assert "Run `make lock` to add them.\n" in err
    subprocess.run([clone / ".venv" / "bin" / "python", "-c", "import slow"], check=True)


def test_make_lock_compiles_each_file_with_hashes_and_the_development_file_first(
    clone: Path, make: Make
) -> None:
    uv = clone / ".venv" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text('#!/bin/sh\necho "$@"\n')
    uv.chmod(0o755)
    done = make("lock")
    out, err = done.communicate(timeout=WAIT_SECONDS)
    assert done.returncode == 0, err
    compiled = [line.rpartition(" --output-file ") for line in out.splitlines()]
    assert all("pip compile" in line[0] and "--generate-hashes" in line[0] for line in compiled)
    names = [f"requirements/{path.stem}" for path in (PROJECT / "requirements").glob("*.in")]
    assert [line[2] for line in compiled] == [
        f"{name}.txt {name}.in" for name in ["requirements-dev", *sorted(names)]
    ]


def test_a_users_environment_with_an_old_python_is_reported_and_left_alone(
    clone: Path, make: Make
) -> None:
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 3 10 13 /usr\n")
    python.chmod(0o755)
    refused = make("run")
    out, err = refused.communicate(timeout=WAIT_SECONDS)
    assert refused.returncode != 0
    assert out == ""
    assert ".venv has Python 3.10.13, and Herald needs Python 3.11 or later.\n" in err
    assert "mv .venv .venv.old\n" in err
    assert python.exists()


def test_an_old_python_is_refused_before_anything_is_created(
    clone: Path, tmp_path: Path, make: Make
) -> None:
    liar = tmp_path / "python3.10"
    liar.write_text(LIAR)
    liar.chmod(0o755)
    refused = make("run", python=str(liar))
    out, err = refused.communicate(timeout=WAIT_SECONDS)
    assert refused.returncode != 0
    assert out == ""
    assert "is Python 3.10.13, and Herald needs Python 3.11 or later.\n" in err
    assert "make PYTHON=python3.12 run\n" in err
    assert not (clone / ".venv").exists()


def test_a_missing_python_is_reported(clone: Path, make: Make) -> None:
    refused = make("run", python="python3.99")
    out, err = refused.communicate(timeout=WAIT_SECONDS)
    assert refused.returncode != 0
    assert out == ""
    assert "'python3.99' is not a working Python, and Herald needs Python 3.11" in err
    assert "make PYTHON=python3.12 run\n" in err
    assert not (clone / ".venv").exists()
