"""Commands that examine the project itself. They run in it, since they use its environments."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from gateway.configuration import PROJECT

GENERATED = [
    PROJECT / "bench" / "results" / "scale.json",
    *(PROJECT / "docs" / "images").glob("*.svg"),
]


def make(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `make` as a shell does: without the flags of a `make` that runs these tests."""
    others = ("MAKE", "MFLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return subprocess.run(
        ["make", *arguments],
        cwd=PROJECT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_simulate_reproduces_the_committed_results_and_plots() -> None:
    committed = {path: path.read_bytes() for path in GENERATED}
    assert len(committed) == 4
    done = make("simulate")
    assert done.returncode == 0, done.stderr
    assert [
        path.name for path, generated in committed.items() if path.read_bytes() != generated
    ] == []


def test_too_little_coverage_fails_and_names_the_modules() -> None:
    done = make("coverage", "TESTS=tests/unit/protocol/test_strict_json.py")
    assert done.returncode != 0
    assert "total of" in done.stdout
    assert "is less than fail-under=95" in done.stdout
    assert "chalicelib/delivery/broadcast.py" in done.stdout


class Advisories(BaseHTTPRequestHandler):
    """A database of vulnerabilities with one entry.

    https://google.github.io/osv.dev/post-v1-query/
    """

    vulnerable = ""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = query["package"]["name"]
        affected = [{"package": {"name": name, "ecosystem": "PyPI"}}]
        known = [{"id": "PYSEC-0000-1", "affected": affected}] if name == self.vulnerable else []
        body = json.dumps({"vulns": known}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def advisories(vulnerable: str) -> Iterator[dict[str, str]]:
    """Serve a database with one vulnerable package; yield the variables that pip-audit needs."""
    handler = type("Known", (Advisories,), {"vulnerable": vulnerable})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        direct = [os.environ.get("no_proxy"), os.environ.get("NO_PROXY"), "127.0.0.1"]
        no_proxy = ",".join(filter(None, direct))
        yield {
            "PIP_AUDIT_VULNERABILITY_SERVICE": "osv",
            "PIP_AUDIT_OSV_URL": f"http://127.0.0.1:{server.server_port}",
            "no_proxy": no_proxy,  # takes precedence over NO_PROXY
            "NO_PROXY": no_proxy,
        }
        server.shutdown()
        serving.join()


def test_an_audit_names_vulnerable_packages_and_fails() -> None:
    with advisories("chalice") as variables:
        found = make("audit", **variables)
    assert found.returncode != 0
    [line] = found.stdout.splitlines()
    assert line.startswith("chalice ")
    assert ": PYSEC-0000-1, fixed in " in line
    with advisories("of-another-project") as variables:
        found = make("audit", **variables)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("No known vulnerabilities in ")


def test_an_audit_without_its_database_passes_and_says_that_nothing_was_audited() -> None:
    with advisories("chalice") as variables:
        pass  # the server has ended
    audited = make("audit", **variables)
    assert audited.returncode == 0
    assert audited.stderr.count("NOTHING WAS AUDITED") == 1
    assert audited.stdout == ""
