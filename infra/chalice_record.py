"""Chalice's record of what it made for a stage, shared by all clones of the repository.

Chalice keeps it in `.chalice/deployed/<stage>.json` and finds the stage's APIs by it: a clone
without it would make second ones. So a copy is in the stage's bucket.
"""

import json
from pathlib import Path
from typing import Any

from infra.cloudformation import Bucket

KEY = "deployed.json"
EMPTY = b'{"resources": [], "schema_version": "2.0", "backend": "api"}'

Made = dict[str, dict[str, Any]]
"""What Chalice made, by its names."""


class Record:
    """The record of one stage, in a project's folder and in the stage's bucket."""

    def __init__(self, project: Path, stage: str, bucket: Bucket) -> None:
        self._path = project / ".chalice" / "deployed" / f"{stage}.json"
        self._bucket = bucket

    def fetch(self) -> bool:
        """Take the bucket's copy over; whether that changed anything here."""
        shared = self._bucket.read(KEY)
        if shared is None or shared == self._content():
            return False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_bytes(shared)
        return True

    def share(self) -> None:
        """Put what is here into the bucket, unless it is there already."""
        own = self._content()
        if own is not None and own != self._bucket.read(KEY):
            self._bucket.write(KEY, own)

    def forget(self) -> None:
        """Remove the one that is here: its stage is gone."""
        self._path.unlink(missing_ok=True)

    @property
    def made(self) -> Made:
        """What Chalice made; empty before a first deployment, and after `chalice delete`."""
        resources = json.loads(self._content() or EMPTY)["resources"]
        return {resource["name"]: resource for resource in resources}

    def _content(self) -> bytes | None:
        return self._path.read_bytes() if self._path.exists() else None
