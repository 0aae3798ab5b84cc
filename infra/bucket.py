"""The S3 bucket of a stage: its code, Chalice's record of what it made, and a template while
CloudFormation reads it."""

import hashlib
import re
from functools import cached_property
from typing import Any

import boto3
from botocore.exceptions import ClientError

from infra.stage import Stage

TEMPLATE = re.compile(r"[0-9a-f]{64}\.json")
"""The key of a template; Chalice's record has a name."""


class Bucket:
    """A stage's bucket, in the account and the region of a session."""

    def __init__(self, session: boto3.Session, stage: Stage) -> None:
        self._session = session
        self._stage = stage
        self._s3 = session.client("s3")

    @cached_property
    def name(self) -> str:
        """The bucket's name. Asks STS for the account, once, when it is first used."""
        account = self._session.client("sts").get_caller_identity()["Account"]
        return f"{self._stage.prefix}code-{account}-{self._session.region_name}"

    def create(self) -> None:
        """Create the bucket unless it exists."""
        region = self._session.region_name
        location: Any = {}
        if region != "us-east-1":  # S3 refuses a location constraint there
            location = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        try:
            self._s3.create_bucket(Bucket=self.name, **location)
        except ClientError as error:
            if error.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":
                raise

    def upload(self, content: bytes, extension: str) -> str:
        """Store content under its own hash, so that new content also changes the template.

        Returns the key.
        """
        key = f"{hashlib.sha256(content).hexdigest()}.{extension}"
        self.write(key, content)
        return key

    def delete_templates(self) -> None:
        """Delete every template, also those of earlier deployments: a template has the variables of
        the functions, which may be secrets."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        for key in filter(TEMPLATE.fullmatch, keys):
            self._s3.delete_object(Bucket=self.name, Key=key)

    def url(self, key: str) -> str:
        """Return the URL at which CloudFormation finds an object."""
        return f"{self._s3.meta.endpoint_url}/{self.name}/{key}"

    def write(self, key: str, content: bytes) -> None:
        """Store an object."""
        self._s3.put_object(Bucket=self.name, Key=key, Body=content)

    def read(self, key: str) -> bytes | None:
        """Return an object's content, or None if the object or the bucket doesn't exist."""
        try:
            content: bytes = self._s3.get_object(Bucket=self.name, Key=key)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("NoSuchKey", "NoSuchBucket"):
                raise
            return None
        return content

    def delete(self) -> None:
        """Delete the bucket and its objects, if it exists."""
        try:
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.name)
            for page in pages:
                for entry in page.get("Contents", []):
                    self._s3.delete_object(Bucket=self.name, Key=entry["Key"])
            self._s3.delete_bucket(Bucket=self.name)
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchBucket":
                raise
