"""A gateway as a person runs it: in a process of its own, which prints."""

import configparser
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from gateway.server import Running
from tests.support.clients import Client

START_SECONDS = 30.0


@contextmanager
def running(checkout: Path, printed: Path, **environment: str) -> Iterator[Client]:
    """A client of `make run` in a checkout; all that it prints is in a file."""
    with printed.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "run"],
            cwd=checkout,
            env={**os.environ, "PORT": "0", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with closing(Client(_started(process, printed, checkout))) as client:
            yield client
    finally:
        process.kill()
        process.wait()


def _started(process: "subprocess.Popen[bytes]", printed: Path, checkout: Path) -> Running:
    end = time.monotonic() + START_SECONDS
    while (ready := re.search(r"REST\s+http://(\S+)[\s\S]*curl", printed.read_text())) is None:
        assert process.poll() is None, printed.read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    aws = configparser.ConfigParser()
    aws.read(checkout / ".herald" / "aws.config")
    address = ready[1]
    return Running(
        http=f"http://{address}",
        websocket=f"ws://{address}/ws",
        management=f"http://{address}/ws",
        aws={
            "AWS_ENDPOINT_URL": aws["default"]["endpoint_url"],
            "AWS_REGION": aws["default"]["region"],
            "AWS_ACCESS_KEY_ID": aws["default"]["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": aws["default"]["aws_secret_access_key"],
        },
    )
