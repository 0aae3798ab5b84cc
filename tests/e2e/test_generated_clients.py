"""Clients that openapi-typescript and openapi-python-client generate, with default options."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from gateway.configuration import PROJECT
from tests.support.clients import Client, token

DOCUMENT = PROJECT / "docs" / "openapi.yaml"
SOURCES = Path(__file__).with_name("generated")
NODE_MODULES = Path(__file__).with_name("node_modules")
VENV = PROJECT / ".venv" / "e2e" / "bin"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed, and return its output."""
    ended = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def bodies() -> list[Any]:
    """Return the messages that the documents send with curl."""
    pages = [PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")]
    texts = [text for page in pages for text in re.findall(r"-d '(\{.*?\})'", page.read_text())]
    return [json.loads(text) for text in texts]


def test_the_types_of_openapi_typescript_can_send_a_message(herald: Client, tmp_path: Path) -> None:
    messages = bodies()
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(SOURCES / "send.ts", tmp_path)
    (tmp_path / "documented.ts").write_text(
        'import type { components } from "./herald.js";\n'
        f'export const messages: components["schemas"]["Message"][] = {json.dumps(messages)};\n'
    )
    programs = NODE_MODULES / ".bin"
    run(programs / "openapi-typescript", DOCUMENT, "-o", "herald.ts", cwd=tmp_path)
    types = (tmp_path / "herald.ts").read_text()
    vague = re.findall(r"(\w+)\??: .*\bunknown\b", types)
    assert set(vague) == {"data", "name"}  # `[name: string]: unknown` stands for other headers
    run(
        programs / "tsc", "--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes",
        "--module", "nodenext", "--target", "es2022", "send.ts", "documented.ts", cwd=tmp_path,
    )  # fmt: skip

    socket = herald.connect("bob", tenant="typescript")
    program = """
        import { messages } from "./documented.js";
        import { send } from "./send.js";
        const [url, token] = process.argv.slice(1);
        console.log((await send(url, token, messages[0])).delivered);
    """
    url, sender = herald.running.http, token(tenant="typescript")
    printed = run("node", "--input-type=module", "-e", program, url, sender, cwd=tmp_path)
    assert int(printed) == 1
    assert_received(socket.receive(), messages[0])


def test_the_client_of_openapi_python_client_can_send_a_message(
    herald: Client, tmp_path: Path
) -> None:
    client = tmp_path / "client"
    generated = run(
        VENV / "openapi-python-client", "generate", "--path", DOCUMENT, "--output-path", client,
        cwd=tmp_path, PATH=f"{VENV}{os.pathsep}{os.environ['PATH']}",  # it runs ruff
    )  # fmt: skip
    assert "Warning" not in generated, generated
    models = [model.read_text() for model in (client / "herald_client" / "models").iterdir()]
    vague = re.findall(r"^    (\w+): .*\bAny\b", "".join(models), re.MULTILINE)
    assert set(vague) == {"data", "additional_properties"}
    shutil.copy(SOURCES / "send.py", tmp_path)
    run(
        sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache",
        "send.py", client, cwd=tmp_path, MYPYPATH=str(client),
    )  # fmt: skip

    socket = herald.connect("bob", tenant="python")
    url, sender = herald.running.http, token(tenant="python")
    printed = json.loads(
        run(sys.executable, "send.py", url, sender, cwd=tmp_path, PYTHONPATH=str(client))
    )
    assert printed["sent"] in bodies()
    assert printed["delivered"] == 1
    assert_received(socket.receive(), printed["sent"])


def assert_received(frame: Any, sent: Any) -> None:
    """Assert that the frame has the message that was sent, and no others."""
    [message] = frame["messages"]
    assert (message["type"], message["data"]) == (sent["type"], sent["data"])
