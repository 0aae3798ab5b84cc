"""The running gateways of this checkout, and the AWS config file that leads to the newest.

Each gateway has a file in `.herald/running`, which it keeps locked for as long as its process
lives, however that ends. A file that nobody has locked is what a killed process left behind.
"""

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway.configuration import HERALD
from gateway.machine import private_files

FOLDER = HERALD / "running"
AWS_CONFIG = HERALD / "aws.config"
STARTER_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A running gateway. `variables` lead an app, and its SDK, to what is behind it."""

    pid: int
    port: int
    started_ns: int
    variables: Mapping[str, str]


@contextlib.contextmanager
def registered(port: int, variables: Mapping[str, str]) -> Iterator[None]:
    """Have this process found as a gateway on `port` while the context lasts."""
    entry = Entry(pid=os.getpid(), port=port, started_ns=time.time_ns(), variables=variables)
    make_folder()
    descriptor, temporary = tempfile.mkstemp(prefix=".", dir=FOLDER)
    path = FOLDER / f"gateway-{entry.started_ns}-{entry.pid}.json"  # never used again
    with open(descriptor, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(asdict(entry)))
        file.flush()
        os.rename(temporary, path)
        publish()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            publish()


def gateways() -> list[Entry]:
    """Return the running gateways of this checkout, the one started last at the end."""
    files = FOLDER.glob("gateway-*.json")
    entries = [Entry(**json.loads(text)) for path in files if (text := read_locked(path))]
    return sorted(entries, key=lambda entry: entry.started_ns)


def newest(port: int | None = None) -> Entry | None:
    """Return the running gateway that was started last, of those on a port if one is named."""
    found = [entry for entry in gateways() if port in (None, entry.port)]
    return found[-1] if found else None


def publish() -> None:
    """Have the AWS config file lead to the newest gateway, and remove what the dead have left."""
    with alone():
        for path in FOLDER.glob("*.json"):
            if read_locked(path) is None:
                path.unlink(missing_ok=True)
        gateway = newest()
        if gateway is None:
            AWS_CONFIG.unlink(missing_ok=True)
        else:
            private_files.replace(AWS_CONFIG, aws_config(gateway.variables))


def publish_after(pid: int) -> None:
    """Publish as soon as a process that has ended, or is about to, is seen as such."""
    if not FOLDER.exists():
        return
    end = time.monotonic() + STARTER_SECONDS
    while any(entry.pid == pid for entry in gateways()) and time.monotonic() < end:
        time.sleep(0.01)
    publish()


def aws_config(variables: Mapping[str, str]) -> str:
    """Return all that an SDK or the AWS CLI must know.
    https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html"""
    return f"""[default]
endpoint_url = {variables["AWS_ENDPOINT_URL"]}
region = {variables["AWS_REGION"]}
aws_access_key_id = {variables["AWS_ACCESS_KEY_ID"]}
aws_secret_access_key = {variables["AWS_SECRET_ACCESS_KEY"]}
"""


def make_folder() -> None:
    """Make the folder of the entries, for its owner alone."""
    HERALD.mkdir(exist_ok=True)
    FOLDER.mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Wait until no other process changes the folder, and keep them waiting."""
    make_folder()
    with open(FOLDER / "lock", "w", opener=private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def private(path: str, flags: int) -> int:
    """Open a file that its owner alone may read, if it is made: an opener for `open`."""
    return os.open(path, flags, 0o600)


def read_locked(path: Path) -> str | None:
    """Return what a file holds if a living process has it locked."""
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read()
    except FileNotFoundError:
        pass
    return None
