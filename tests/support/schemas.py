"""What `docs/openapi.yaml` and `docs/asyncapi.yaml` say, asked of frames and answers."""

from functools import cache
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from gateway.configuration import PROJECT

DOCUMENTS = {
    name: yaml.safe_load((PROJECT / "docs" / name).read_text())
    for name in ("openapi.yaml", "asyncapi.yaml")
}
BASE = "https://herald.invalid/"  # where the documents find each other
REGISTRY: Registry[Any] = Registry().with_resources(
    (BASE + name, DRAFT202012.create_resource(document)) for name, document in DOCUMENTS.items()
)


GATEWAY_ERROR = {"message", "connectionId", "requestId"}
"""API Gateway's own, where a function failed."""


@cache
def _validator(document: str, name: str) -> Draft202012Validator:
    reference = f"{BASE}{document}#/components/schemas/{name}"
    return Draft202012Validator({"$ref": reference}, registry=REGISTRY)


def check_received(frame: Any) -> None:
    """Raise ValidationError unless Herald may send `frame`."""
    if "type" not in frame:
        assert frame.keys() == GATEWAY_ERROR
    else:
        _validator("asyncapi.yaml", _known(frame["type"])).validate(frame)


def check_sent(frame: Any) -> None:
    """Raise ValidationError unless a client may send `frame`."""
    _validator("asyncapi.yaml", _known(frame["action"])).validate(frame)


def check_answer(name: str, answer: Any) -> None:
    """Raise ValidationError unless REST may answer so, by its schema's name."""
    _validator("openapi.yaml", name).validate(answer)


def _known(name: str) -> str:
    assert name in DOCUMENTS["asyncapi.yaml"]["components"]["messages"], name
    return name
