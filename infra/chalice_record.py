"""Chalice's record of what it made for a stage, shared by all clones of the repository.

Chalice keeps its record in `.chalice/deployed/<stage>.json`, and finds the stage's APIs by it: a
clone without the record would create them a second time. So a copy is kept in the stage's bucket.
"""

import json
from pathlib import Path
from typing import Any

from infra.bucket import Bucket

KEY = "deployed.json"
EMPTY = b'{"resources": [], "schema_version": "2.0", "backend": "api"}'

ChaliceResources = dict[str, dict[str, Any]]
"""The resources that Chalice made, by Chalice's names such as `rest_api`."""


class ChaliceRecord:
    """The record of one stage, in a project's folder and in the stage's bucket."""

    def __init__(self, project: Path, stage_name: str, bucket: Bucket) -> None:
        self._path = project / ".chalice" / "deployed" / f"{stage_name}.json"
        self._bucket = bucket

    def fetch(self) -> bool:
        """Replace the local record by the bucket's. Returns whether that changed anything."""
        shared = self._bucket.read(KEY)
        if shared is None or shared == self._content():
            return False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_bytes(shared)
        return True

    def share(self) -> None:
        """Copy the local record to the bucket, unless the bucket has the same one."""
        content = self._content()
        if content is not None and content != self._bucket.read(KEY):
            self._bucket.write(KEY, content)

    def forget(self) -> None:
        """Delete the local record, once its stage is destroyed."""
        self._path.unlink(missing_ok=True)

    def resources(self) -> ChaliceResources:
        """Return what Chalice made: nothing before a first deployment and after
        `chalice delete`."""
        resources = json.loads(self._content() or EMPTY)["resources"]
        return {resource["name"]: resource for resource in resources}

    def _content(self) -> bytes | None:
        return self._path.read_bytes() if self._path.exists() else None
