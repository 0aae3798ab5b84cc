"""`make` in a fresh clone: real environments, made by the real pip, from an index of our own."""

import fcntl
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
WAIT_SECONDS = 50.0
GATEWAY = "import sys\n\nprint('a token for', *sys.argv[2:])\n"
LIAR = f"""#!/bin/sh
# A Python that takes itself for an older one.
[ "$1" = -c ] && exit 0
shift 2
exec {sys.executable} -c 'import runpy, sys
sys.version_info = (3, 10, 13, "final", 0)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")' "$@"
"""


class Index:
    """A package index with one package, `slow`, which it keeps back until it is released."""

    def __init__(self) -> None:
        self.asked, self.released = Event(), Event()
        self.asked_times = 0
        self.url = ""

    def page(self, path: str) -> bytes | None:
        """What is at a path."""
        if path == "/simple/slow/":
            self.asked_times += 1
            self.asked.set()
            self.released.wait(WAIT_SECONDS)
            return f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
        return wheel() if path == f"/{WHEEL}" else None


def wheel() -> bytes:
    """https://packaging.python.org/en/latest/specifications/binary-distribution-format/"""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("slow.py", "")
        archive.writestr(
            "slow-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: slow\nVersion: 1\n"
        )
        archive.writestr(
            "slow-1.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("slow-1.dist-info/RECORD", "")
    return written.getvalue()


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
    """A clone that nothing was set up in, whose commands need one package and only print."""
    folder = tmp_path / "herald"
    (folder / "gateway").mkdir(parents=True)
    (folder / "gateway" / "__main__.py").write_text(GATEWAY)
    shutil.copytree(PROJECT / "tools", folder / "tools")
    shutil.copy(PROJECT / "Makefile", folder)
    for file in ("requirements.txt", "constraints.txt"):
        (folder / file).touch()
    (folder / "requirements-dev.txt").write_text("slow==1\n")
    return folder


Make = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def make(clone: Path, index: Index) -> Iterator[Make]:
    """Starts `make` in the clone; none outlives the test."""
    started: list[subprocess.Popen[str]] = []
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
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
            start_new_session=True,  # a group of its own, as a shell gives it
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
def test_ctrl_c_in_a_set_up_is_quiet_and_leaves_nothing_running(
    clone: Path, index: Index, make: Make
) -> None:
    interrupted = make("token", "USER=alice")
    assert index.asked.wait(WAIT_SECONDS)
    os.killpg(interrupted.pid, signal.SIGINT)
    out, err = interrupted.communicate(timeout=WAIT_SECONDS)
    assert interrupted.returncode in (130, -signal.SIGINT)  # which a shell calls 130, too
    assert out == ""
    assert "Interrupted. The next make starts the set-up again.\n" in err
    assert "Traceback" not in err
    assert "cancelled" not in err  # pip's own word
    eventually(lambda: not group_lives(interrupted.pid))
    with (clone / ".herald" / "set-up.lock").open() as lock:  # which pip would have as well
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # As the next test finds it, whose first command makes it again.
    assert (clone / ".venv" / ".half-made").exists()
    assert not (clone / ".venv" / ".ready").exists()


@pytest.mark.timeout(150)
def test_a_half_made_environment_is_made_again_while_another_command_waits_for_it(
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
    assert sorted(path.name for path in (clone / ".venv").iterdir() if path.is_file()) == [
        ".ready", "pyvenv.cfg",
    ]  # fmt: skip


def test_an_environment_that_the_user_made_is_kept_and_installed_into(
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
    assert "once. It was not made by make, and is kept.\n" in err
    assert (venv / "mine").exists()
    subprocess.run([venv / "bin" / "python", "-c", "import slow"], check=True)


def test_an_environment_of_the_users_that_is_too_old_is_named_and_left_alone(
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


def test_an_old_python_is_refused_before_anything_is_made(
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


def test_a_python_that_is_not_there_is_named(clone: Path, make: Make) -> None:
    refused = make("run", python="python3.99")
    out, err = refused.communicate(timeout=WAIT_SECONDS)
    assert refused.returncode != 0
    assert out == ""
    assert "There is no Python that runs as 'python3.99', and Herald needs Python 3.11" in err
    assert "make PYTHON=python3.12 run\n" in err
    assert not (clone / ".venv").exists()
