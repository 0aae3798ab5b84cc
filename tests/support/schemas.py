"""Check frames and answers against `docs/openapi.yaml` and `docs/asyncapi.yaml`."""

from functools import cache
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from gateway.configuration import PROJECT

DOCUMENTS = {
    name: yaml.load(
        (PROJECT / "docs" / name).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    for name in ("openapi.yaml", "asyncapi.yaml")
}
BASE = "https://herald.invalid/"  # the documents refer to each other by these names
REGISTRY: Registry[Any] = Registry().with_resources(
    (BASE + name, DRAFT202012.create_resource(document)) for name, document in DOCUMENTS.items()
)


GATEWAY_ERROR = {"message", "connectionId", "requestId"}
"""The fields of API Gateway's own error, for when a function failed."""


def name_of(type_name: str) -> str:
    """Return the name of the server's frames of a type in `asyncapi.yaml`."""
    return "heartbeatAnswer" if type_name == "heartbeat" else type_name  # it is an action, too


@cache
def _validator(document: str, name: str) -> Draft202012Validator:
    reference = f"{BASE}{document}#/components/schemas/{name}"
    return Draft202012Validator({"$ref": reference}, registry=REGISTRY)


def check_received(frame: Any) -> None:
    """Raise ValidationError unless Herald may send `frame`."""
    if "type" not in frame:
        assert frame.keys() == GATEWAY_ERROR
    else:
        _validator("asyncapi.yaml", _known(name_of(frame["type"]))).validate(frame)


def check_sent(frame: Any) -> None:
    """Raise ValidationError unless a client may send `frame`."""
    _validator("asyncapi.yaml", _known(frame["action"])).validate(frame)


def check_answer(name: str, answer: Any) -> None:
    """Raise ValidationError unless `answer` matches the schema `name` of REST's answers."""
    _validator("openapi.yaml", name).validate(answer)


def _known(name: str) -> str:
    assert name in DOCUMENTS["asyncapi.yaml"]["components"]["messages"], name
    return name
