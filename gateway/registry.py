"""The running gateways of this checkout, and the AWS config file that leads to the newest.

Each gateway has a file in `.herald/running`, which stays locked until its process ends, however
that happens. A file without a lock was left behind by a killed process.
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

STARTER_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A running gateway. `variables` lead an app, and its SDK, to what is behind it."""

    pid: int
    port: int
    started_ns: int
    variables: Mapping[str, str]


class Registry:
    """The gateways that are registered in a folder: `.herald` of a checkout."""

    def __init__(self, herald: Path) -> None:
        self.folder = herald / "running"
        self.aws_config = herald / "aws.config"
        self._herald = herald

    @contextlib.contextmanager
    def registered(self, port: int, variables: Mapping[str, str]) -> Iterator[None]:
        """Register this process as a gateway on `port` while the context lasts."""
        entry = Entry(pid=os.getpid(), port=port, started_ns=time.time_ns(), variables=variables)
        self.make_folder()
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=self.folder)
        path = self.folder / f"gateway-{entry.started_ns}-{entry.pid}.json"  # a unique name
        with open(descriptor, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(asdict(entry)))
            file.flush()
            os.rename(temporary, path)
            self.publish()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                self.publish()

    def gateways(self) -> list[Entry]:
        """Return the running gateways, oldest first."""
        files = self.folder.glob("gateway-*.json")
        entries = [Entry(**json.loads(text)) for path in files if (text := read_locked(path))]
        return sorted(entries, key=lambda entry: entry.started_ns)

    def newest(self, port: int | None = None) -> Entry | None:
        """Return the newest running gateway, or the newest on `port`; None if there isn't one."""
        found = [entry for entry in self.gateways() if port in (None, entry.port)]
        return found[-1] if found else None

    def publish(self) -> None:
        """Write the AWS config file for the newest gateway, and remove files without a lock."""
        with self.locked():
            for path in self.folder.glob("*.json"):
                if read_locked(path) is None:
                    path.unlink(missing_ok=True)
            gateway = self.newest()
            if gateway is None:
                self.aws_config.unlink(missing_ok=True)
            else:
                private_files.replace(self.aws_config, _aws_config(gateway.variables))

    def publish_after(self, pid: int) -> None:
        """Publish once the gateway with this process id has released its lock, or after 5 s."""
        if not self.folder.exists():
            return
        end = time.monotonic() + STARTER_SECONDS
        while any(entry.pid == pid for entry in self.gateways()) and time.monotonic() < end:
            time.sleep(0.01)
        self.publish()

    def make_folder(self) -> None:
        """Make the folder of the entries, which only its owner can read."""
        self._herald.mkdir(exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the folder while the context lasts."""
        self.make_folder()
        with open(self.folder / "lock", "w", opener=private_files.opener) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _aws_config(variables: Mapping[str, str]) -> str:
    """Return all that an SDK or the AWS CLI needs.

    https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html
    """
    return f"""[default]
endpoint_url = {variables["AWS_ENDPOINT_URL"]}
region = {variables["AWS_REGION"]}
aws_access_key_id = {variables["AWS_ACCESS_KEY_ID"]}
aws_secret_access_key = {variables["AWS_SECRET_ACCESS_KEY"]}
"""


def read_locked(path: Path) -> str | None:
    """Return what a file holds; None unless a running process has locked it."""
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read()
    except FileNotFoundError:
        pass
    return None


REGISTRY = Registry(HERALD)
