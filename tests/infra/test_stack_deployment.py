"""A stage that is deployed as one stack: its package is small, its resources are the real ones."""

import json
from pathlib import Path
from typing import Any

import boto3

from infra.bucket import Bucket
from infra.configuration import StageConfiguration
from infra.stack_deployment import StackDeployment
from infra.stage import TABLES, Stage
from infra.template import storage_template

STACKED = Stage("stacked")


def package(folder: Path, **resources: Any) -> Path:
    template = storage_template(StageConfiguration(STACKED))
    template["Resources"] |= resources
    (folder / "sam.json").write_text(json.dumps(template))
    (folder / "deployment.zip").write_bytes(b"code")
    return folder


def test_a_stage_is_deployed_and_destroyed_with_its_tables(
    session: boto3.Session, tmp_path: Path
) -> None:
    deployment = StackDeployment(STACKED, session)
    assert not deployment.exists()
    deployment.deploy(package(tmp_path), {})
    assert deployment.exists()
    assert names_of_tables(session) == {STACKED.named(table) for table in TABLES.values()}
    deployment.destroy()
    assert not deployment.exists()
    assert names_of_tables(session) == set()
    assert Bucket(session, STACKED).read("any") is None


def test_each_function_gets_the_uploaded_code(session: boto3.Session, tmp_path: Path) -> None:
    class Applied(Exception):
        """Raised instead of a deployment, with its template."""

    def apply(template: dict[str, Any], bucket: Bucket, parameters: Any) -> None:
        raise Applied(template["Resources"], bucket)

    function = {"Type": "AWS::Serverless::Function", "Properties": {"CodeUri": "./deployment.zip"}}
    deployment = StackDeployment(STACKED, session)
    deployment._stack.apply = apply  # type: ignore[method-assign, assignment]
    try:
        deployment.deploy(package(tmp_path, Sweep=function), {})
    except Applied as applied:
        resources, bucket = applied.args
    code = resources["Sweep"]["Properties"]["CodeUri"]
    assert code["Bucket"] == bucket.name
    assert bucket.read(code["Key"]) == b"code"
    deployment.destroy()


def names_of_tables(session: boto3.Session) -> set[str]:
    names = session.client("dynamodb").list_tables()["TableNames"]
    return {name for name in names if name.startswith(STACKED.prefix)}
