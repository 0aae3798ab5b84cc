"""Commands from README and the documents, run as they are written there."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from chalicelib.settings import Settings
from gateway.configuration import PROJECT
from tests.support.clients import SECRET, Client, eventually

LOCAL = "127.0.0.1:8000"


def block(document: str, begin: str) -> str:
    """Return the only code block of a document that begins with `begin`."""
    text = (PROJECT / document).read_text()
    [found] = [it for it in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if it.startswith(begin)]
    return str(found)


@pytest.mark.parametrize("document", ["README.md", "docs/index.md"])
def test_the_websocket_client_receives_what_curl_sends(
    herald: Client, document: str, tmp_path: Path
) -> None:
    here = herald.running.http.removeprefix("http://")
    environment = {"HERALD_JWT_SECRET": SECRET, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    printed = tmp_path / "printed"
    since = int(time.time() * 1000)
    with printed.open("w") as output:
        client = subprocess.Popen(
            ["bash", "-c", "exec " + block(document, ".venv/bin/websockets").replace(LOCAL, here)],
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: herald.presence("bob")["connections"] == 1)
        answer = subprocess.run(
            ["bash", "-c", block(document, "curl").replace(LOCAL, here)],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        [report] = json.loads(answer)["messages"]
        assert (report["recipients"], report["delivered"]) == (1, 1)
        eventually(lambda: "Hello, Bob" in printed.read_text())
        timestamp = re.search(r'"timestamp":(\d+)', printed.read_text())
        assert timestamp is not None
        assert int(timestamp[1]) >= since
    finally:
        client.kill()
        client.communicate()
    eventually(lambda: herald.presence("bob")["connections"] == 0)


def test_the_command_in_the_configuration_page_makes_master_keys() -> None:
    printed = subprocess.run(
        ["bash", "-c", block("docs/configuration.md", "python3 -c")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    [key] = Settings.from_environ({"HERALD_ENCRYPTION_KEYS": printed}).encryption_keys
    assert key.kid == "2026-11"
    assert len(key.secret) == 32
