"""A project's folder in which Chalice's commands can run, and an AWS that can be deployed to."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from chalice.config import Config

from gateway.configuration import PROJECT
from tests.e2e.deployment import emulated


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with Chalice's configuration and a compiled module."""
    (tmp_path / ".chalice").mkdir()
    config = (PROJECT / ".chalice" / "config.json").read_text()
    (tmp_path / ".chalice" / "config.json").write_text(config)
    (tmp_path / "chalicelib" / "__pycache__").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setattr(Config, "environment_variables", vars(Config)["environment_variables"])
    monkeypatch.setenv("DEPLOY_PYTHON", sys.executable)
    return tmp_path


@pytest.fixture(scope="session")
def cloud() -> Iterator[str]:
    """The endpoint of an AWS that has CloudFormation. Each test uses a stage of its own."""
    with emulated(sys.executable) as endpoint:
        yield endpoint


@pytest.fixture
def session(cloud: str, monkeypatch: pytest.MonkeyPatch) -> boto3.Session:
    """A session of that AWS; other sessions of this process lead there, too."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (
        ("AWS_ENDPOINT_URL", cloud),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
    ):
        monkeypatch.setenv(name, value)
    return boto3.Session()
