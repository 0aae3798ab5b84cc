"""`chalice local` as Chalice's users type it, in a checkout in which nothing else has run."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.support.clients import SECRET, eventually, token
from tests.support.copies import copy_project
from tests.support.process import Command, alive, processes_of

START_SECONDS = 50.0
OWN = r"Tables  its own"
MESSAGE = {"to": {"users": ["bob"]}, "data": 1}
FOREIGN = {
    "AWS_PROFILE": "prod",
    "AWS_ACCESS_KEY_ID": "foreign",
    "AWS_SECRET_ACCESS_KEY": "foreign",
    "AWS_SESSION_TOKEN": "foreign",
    "AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:9",
    "AWS_REGION": "eu-central-1",
}
"""Variables of a shell that works with a real AWS account."""


class Local:
    """A running `chalice local`. Its output is in a file outside of the checkout."""

    def __init__(self, checkout: Path, *arguments: str, **environment: str) -> None:
        self.checkout = checkout
        self.port = free_port()
        self.printed = checkout.parent / f"printed-{self.port}"
        given = [] if "--port" in arguments else ["--port", str(self.port)]
        with self.printed.open("w") as output:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("chalice"), "local", *given, *arguments],
                cwd=checkout,
                env={**shell(), "PYTHONUNBUFFERED": "1", **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    @property
    def output(self) -> str:
        return self.printed.read_text()

    def until(self, pattern: str, times: int = 1) -> None:
        """Wait until `pattern` has been printed `times` times."""
        end = time.monotonic() + START_SECONDS
        while len(re.findall(pattern, self.output)) < times:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.05)

    def serving(self, times: int = 1) -> "Local":
        """Wait until it serves after `times` starts, and return it."""
        self.until("Serving on", times)
        eventually(self.answers, START_SECONDS)
        return self

    def answers(self) -> bool:
        try:
            return bool(self.http.get("/health").status_code == 200)
        except httpx.TransportError:
            return False

    def token(self, **environment: str) -> str:
        """Return the token that `make token` prints."""
        return subprocess.run(
            [sys.executable, "-m", "gateway", "token", "alice"],
            cwd=self.checkout,
            env={**shell(), **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def post(self, bearer: str, key: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {bearer}"}
        if key is not None:
            headers["Idempotency-Key"] = key
        return self.http.post("/messages", json=MESSAGE, headers=headers)

    def replays(self, bearer: str, key: str) -> bool:
        """Return whether the tables hold an earlier request with this idempotency key."""
        response = self.post(bearer, key)
        assert response.status_code == 200, response.text
        return bool(response.headers.get("Idempotent-Replayed") == "true")

    def end(self) -> int:
        """Wait for the end, and return the exit status."""
        return self.process.wait(START_SECONDS)


def shell() -> dict[str, str]:
    """Return the environment of a shell without variables of AWS.

    Python writes no bytecode, since Chalice first looks at the files before it imports the app, and
    would restart for a module that was compiled meanwhile.
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**plain, "PYTHONDONTWRITEBYTECODE": "1"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_project(tmp_path / "herald")


@pytest.fixture
def local(checkout: Path) -> Iterator[Callable[..., Local]]:
    """Start `chalice local`, and kill those that are still running after the test."""
    started: list[Local] = []

    def start(*arguments: str, **environment: str) -> Local:
        started.append(Local(checkout, *arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        one.http.close()
        one.process.kill()
        one.process.wait()
    eventually(lambda: not list((checkout / ".herald" / "running").glob("*.json")))


@pytest.fixture
def run(checkout: Path) -> Iterator[Callable[..., Command]]:
    """Start `make run` and wait for its welcome; kill it after the test."""
    started: list[Command] = []

    def start(**environment: str) -> Command:
        started.append(Command(checkout, "run", **environment))
        started[-1].until("curl")
        return started[-1]

    yield start
    for command in started:
        command.process.kill()
        command.process.communicate()


def configure(checkout: Path, stage: str, **variables: str) -> None:
    path = checkout / ".chalice" / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    config["stages"].setdefault(stage, {})["environment_variables"] = variables
    path.write_text(json.dumps(config))


def test_chalice_local_without_run_uses_tables_of_its_own(local: Callable[..., Local]) -> None:
    herald = local().serving()
    alice = herald.token()
    assert herald.post(alice).status_code == 200
    refused = herald.post("bad")
    assert (refused.status_code, refused.json()) == (401, {"message": "Unauthorized"})
    assert herald.http.post("/messages", json=MESSAGE).status_code == 401
    assert re.search(OWN, herald.output)
    assert f"REST    http://127.0.0.1:{herald.port}\n" in herald.output
    curl = re.search(r"(?s)  curl .*?\n\n", herald.output)
    assert curl is not None
    response = subprocess.run(["sh", "-c", curl[0]], capture_output=True, text=True, check=True)
    assert json.loads(response.stdout)["messages"][0]["recipients"] == 0
    assert "Restarting" not in herald.output


def test_the_data_of_chalice_local_survives_a_reload(
    checkout: Path, local: Callable[..., Local]
) -> None:
    herald = local().serving()
    alice = herald.token()
    assert not herald.replays(alice, "key")
    with (checkout / "app.py").open("a") as app:
        app.write("# changed\n")
    herald.serving(times=2)
    assert herald.replays(alice, "key")
    assert len(re.findall(OWN, herald.output)) == 1
    before = processes_of(herald.process.pid)
    herald.process.send_signal(signal.SIGINT)
    assert herald.end() == 0
    eventually(lambda: not any(map(alive, before)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("how", [[], ["--no-autoreload"]])
def test_chalice_local_leaves_no_process_or_file_however_it_ends(
    checkout: Path, local: Callable[..., Local], number: int, how: list[str]
) -> None:
    herald = local(*how).serving()
    processes = processes_of(herald.process.pid)
    assert len(processes) >= 2  # the keeper, the emulator, and perhaps the reloader's child
    herald.process.send_signal(number)
    herald.end()
    eventually(lambda: not any(map(alive, processes)))
    eventually(lambda: not list((checkout / ".herald" / "running").glob("chalice-local-*")))


def test_a_worker_whose_parent_has_gone_ends_at_once(checkout: Path) -> None:
    """A parent may be killed before its worker has looked it up.

    Then another process has adopted the worker, and the worker must not wait for that process.
    """
    worker = subprocess.run(
        [Path(sys.executable).with_name("chalice"), "local", "--port", str(free_port())],
        cwd=checkout,
        env={**shell(), "CHALICE_WORKER": "true"},
        timeout=START_SECONDS,
        check=True,
        stdout=subprocess.PIPE,
        start_new_session=True,  # so that its parent looks like one that adopted it
    )
    assert worker.stdout == b""
    assert not (checkout / ".herald").exists()


def test_chalice_local_shares_the_tables_queue_and_sockets_of_run(
    local: Callable[..., Local], run: Callable[..., Command]
) -> None:
    url = run(HERALD_HISTORY_TABLE="another-name").until(r"ws://\S+\?token=\S+")[0]
    herald = local(HERALD_INLINE_RECIPIENTS="0", HERALD_USERS_TABLE="nowhere").serving()
    with connect(url) as bob:
        queued = herald.post(herald.token())
        assert (queued.status_code, queued.json()["messages"][0]["queued"]) == (202, True)
        assert json.loads(bob.recv(timeout=30))["messages"][0]["data"] == 1
    assert "shared with `make run` on port" in herald.output
    assert not re.search(OWN, herald.output)


def test_chalice_local_without_autoreload_reaches_the_sockets_of_run(
    local: Callable[..., Local], run: Callable[..., Command]
) -> None:
    url = run().until(r"ws://\S+\?token=\S+")[0]
    herald = local("--no-autoreload", HERALD_FANOUT_QUEUE_URL="").serving()
    with connect(url) as bob:
        assert herald.post(herald.token()).status_code == 200
        assert json.loads(bob.recv(timeout=30))["messages"][0]["data"] == 1


def test_chalice_local_follows_a_run_that_starts_and_stops(
    local: Callable[..., Local], run: Callable[..., Command]
) -> None:
    herald = local().serving()
    alice = herald.token()
    assert not herald.replays(alice, "key")
    gateway = run()
    herald.until("shared with `make run`")
    assert not herald.serving(times=2).replays(alice, "key")
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.end() == 0
    herald.until(OWN, times=2)
    assert herald.serving(times=3).replays(alice, "key")


def test_two_processes_of_chalice_local_do_not_share_data(local: Callable[..., Local]) -> None:
    one, other = local(), local()
    alice = one.serving().token()
    assert not one.replays(alice, "key")
    assert not other.serving().replays(alice, "key")
    other.process.send_signal(signal.SIGTERM)
    other.end()
    assert one.replays(alice, "key")


def test_a_stages_limits_apply_but_its_resources_are_not_used(
    checkout: Path, local: Callable[..., Local]
) -> None:
    """The variables of resources and of tokens are the local ones."""
    configure(
        checkout,
        "dev",
        HERALD_STAGE="dev",
        HERALD_CONNECTIONS_TABLE="herald-dev-connections",
        HERALD_MESSAGES_TABLE="herald-dev-messages",
        HERALD_FANOUT_QUEUE_URL="https://sqs.eu-central-1.amazonaws.com/1/herald-dev-fanout",
        HERALD_NOTIFY_TOPIC_ARN="arn:aws:sns:eu-central-1:1:herald-dev",
        HERALD_MANAGEMENT_ENDPOINT="https://dev.example.com",
        HERALD_JWT_SECRET="the-secret-of-the-stage-dev-with-32-bytes",
        HERALD_JWKS_URL="https://dev.example.com/jwks.json",
        HERALD_JWT_ISSUER="https://dev.example.com",
        HERALD_JWT_AUDIENCE="dev",
        HERALD_DAILY_MESSAGE_QUOTA="1",
        **FOREIGN,
    )
    herald = local("--stage", "dev").serving()
    alice = herald.token()
    assert herald.post(alice).status_code == 200
    assert herald.post(alice).status_code == 429
    assert '"Stage": "local"' in herald.output


def test_the_shells_secret_wins_over_the_stages(
    checkout: Path, local: Callable[..., Local]
) -> None:
    configure(checkout, "dev", HERALD_JWT_SECRET="the-secret-of-the-stage-dev-with-32-bytes")
    herald = local(HERALD_JWT_SECRET=SECRET).serving()
    assert herald.post(herald.token(HERALD_JWT_SECRET=SECRET)).status_code == 200
    assert herald.post(token()).status_code == 200
    assert not (checkout / ".herald" / "jwt-secret").exists()
    assert herald.post(herald.token()).status_code == 401


@pytest.mark.parametrize("stage", ["nowhere", "local"])
def test_any_stage_works_and_the_shells_aws_account_is_not_used(
    tmp_path: Path, local: Callable[..., Local], stage: str
) -> None:
    config = tmp_path / "config"
    config.write_text(
        "[profile prod]\nregion = eu-central-1\nignore_configure_endpoint_urls = true"
    )
    herald = local("--stage", stage, AWS_CONFIG_FILE=str(config), **FOREIGN).serving()
    assert herald.post(herald.token()).status_code == 200


def test_chalice_local_without_a_secret_says_where_tokens_come_from(
    local: Callable[..., Local],
) -> None:
    herald = local(HERALD_JWT_SECRET="").serving()
    assert "tokens come from your identity provider" in herald.output
    assert herald.post(token()).status_code == 401


@pytest.mark.parametrize("how", [[], ["--no-autoreload"]])
def test_a_port_in_use_by_run_is_reported_with_a_free_one(
    local: Callable[..., Local], run: Callable[..., Command], how: list[str]
) -> None:
    port = int(run().until(r"REST\s+http://127\.0\.0\.1:(\d+)")[1])
    herald = local("--port", str(port), *how)
    assert herald.end() != 0
    cure = rf"Port {port} is in use by `make run` of this checkout; try: chalice local --port \d+\n"
    assert re.fullmatch(cure, herald.output), herald.output


def test_a_port_in_use_by_another_program_is_reported_with_a_free_one(
    local: Callable[..., Local],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        herald = local("--port", str(port))
        assert herald.end() != 0
    assert herald.output.startswith(f"Port {port} is in use by another program; try: chalice local")
    assert herald.output.count("\n") == 1


@pytest.mark.parametrize("how", [[], ["--no-autoreload"]])
def test_a_missing_emulator_is_reported_with_the_command_that_installs_it(
    tmp_path: Path, local: Callable[..., Local], how: list[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ministack'] = None\n")
    herald = local(*how, PYTHONPATH=str(tmp_path))
    assert herald.end() != 0
    assert herald.output.startswith("`chalice local` needs ministack for its own DynamoDB: ")
    assert herald.output.endswith(" -m pip install -r requirements-dev.txt\n")
    assert herald.output.count("\n") == 1


@pytest.mark.parametrize("how", [[], ["--no-autoreload"]])
def test_a_wrong_setting_ends_chalice_local_with_one_line(
    local: Callable[..., Local], how: list[str]
) -> None:
    herald = local(*how, HERALD_MESAGE_RATE="5")
    assert herald.end() != 0
    line = "HERALD_MESAGE_RATE is not a setting; did you mean HERALD_MESSAGE_RATE?\n"
    assert herald.output == line


def test_a_broken_secret_is_reported_with_what_to_do(
    checkout: Path, local: Callable[..., Local]
) -> None:
    (checkout / ".herald").mkdir()
    (checkout / ".herald" / "jwt-secret").touch()
    herald = local()
    assert herald.end() != 0
    assert "doesn't hold a local signing secret. Delete it" in herald.output
    assert herald.output.count("\n") == 1
