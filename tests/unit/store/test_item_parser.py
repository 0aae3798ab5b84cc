"""The parser of items returns what the SDK's own parser would."""

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from zlib import crc32

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError
from botocore.session import Session
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.runtime.aws import NotFromAws, sdk_client
from chalicelib.store.dynamodb import dynamodb_client
from chalicelib.store.item_parser import ITEMS_OF

NAMES = st.one_of(st.sampled_from(["B", "BS", "S", "M", '"B"', "Items"]), st.text(min_size=1))
NUMBERS = st.integers().map(str)
BINARIES = st.binary().map(lambda content: b64encode(content).decode())
SCALARS = st.one_of(
    st.builds(lambda value: {"S": value}, NAMES),
    st.builds(lambda value: {"N": value}, NUMBERS),
    st.builds(lambda value: {"B": value}, BINARIES),
    st.builds(lambda value: {"BOOL": value}, st.booleans()),
    st.just({"NULL": True}),
    st.builds(lambda values: {"SS": values}, st.lists(NAMES, min_size=1)),
    st.builds(lambda values: {"NS": values}, st.lists(NUMBERS, min_size=1)),
    st.builds(lambda values: {"BS": values}, st.lists(BINARIES, min_size=1)),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda values: st.one_of(
        st.builds(lambda members: {"L": members}, st.lists(values)),
        st.builds(lambda members: {"M": members}, st.dictionaries(NAMES, values)),
    ),
    max_leaves=8,
)
ITEMS = st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=4)
KEYS = st.dictionaries(NAMES, SCALARS, min_size=1, max_size=2)
CAPACITIES = st.builds(
    lambda units: {"TableName": "t", "CapacityUnits": units}, st.integers(1, 9).map(float)
)
PAGES = st.fixed_dictionaries(
    {"Items": ITEMS, "Count": st.integers(0, 9), "ScannedCount": st.integers(0, 9)},
    optional={"LastEvaluatedKey": KEYS, "ConsumedCapacity": CAPACITIES, "Unknown": NAMES},
)
BATCHES = st.fixed_dictionaries(
    {"Responses": st.dictionaries(NAMES, ITEMS, max_size=2)},
    optional={
        "UnprocessedKeys": st.dictionaries(
            NAMES, st.builds(lambda keys: {"Keys": keys}, st.lists(KEYS, min_size=1)), max_size=2
        ),
        "ConsumedCapacity": st.lists(CAPACITIES),
    },
)


class Answered:
    """A DynamoDB client whose requests get a given response instead of being sent."""

    def __init__(self, client: Any) -> None:
        self.sent = 0
        self._client = client
        self._response: Any = None
        client.meta.events.register("before-send.dynamodb", self._answer)

    def _answer(self, request: Any, **_: Any) -> Any:
        self.sent += 1
        return self._response

    def call(self, operation: str, body: bytes, status: int = 200, **headers: str) -> Any:
        """Return what an operation returns, or what describes the error that it raises."""
        all_headers: Any = {
            "content-type": "application/x-amz-json-1.0",
            "x-amzn-requestid": "request",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        self._response = AWSResponse("https://dynamodb", status, all_headers, None)
        self._response._content = body
        call: Any = {
            "Query": lambda: self._client.query(TableName="t", KeyConditionExpression="a = b"),
            "Scan": lambda: self._client.scan(TableName="t"),
            "BatchGetItem": lambda: self._client.batch_get_item(
                RequestItems={"t": {"Keys": [{"a": {"S": "b"}}]}}
            ),
        }[operation]
        try:
            return call()
        except ClientError as error:
            return error.response
        except Exception as error:  # the SDK has no error of its own for what DynamoDB never sends
            return type(error)

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def clients() -> Iterator[tuple[Answered, Answered]]:
    """Herald's client, and the SDK's own."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "AK")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        session = Session()
        ours = Answered(dynamodb_client(session))
        theirs = Answered(sdk_client(session, "dynamodb"))
        with closing(ours), closing(theirs):
            yield ours, theirs


@settings(deadline=None)
@given(operation=st.sampled_from(["Query", "Scan"]), page=PAGES, ascii_only=st.booleans())
def test_a_page_is_parsed_as_by_the_sdk(
    clients: tuple[Answered, Answered], operation: str, page: Any, ascii_only: bool
) -> None:
    ours, theirs = clients
    body = json.dumps(page, ensure_ascii=ascii_only).encode()
    assert ours.call(operation, body) == theirs.call(operation, body)


@settings(deadline=None)
@given(batch=BATCHES)
def test_a_batch_is_parsed_as_by_the_sdk(clients: tuple[Answered, Answered], batch: Any) -> None:
    ours, theirs = clients
    body = json.dumps(batch).encode()
    assert ours.call("BatchGetItem", body) == theirs.call("BatchGetItem", body)


@pytest.mark.parametrize("operation", ITEMS_OF)
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"{}"),
        (200, b'{"Items": null, "Responses": null}'),
        (400, b'{"__type": "com.amazonaws.dynamodb.v20120810#ThrottlingException", "Items": [1]}'),
        (400, b'{"__type": "ValidationException", "message": "no"}'),
        (400, b"not JSON"),
        (500, b'{"__type": "InternalServerError"}'),
        (503, b"<html>Service Unavailable</html>"),
        (200, b"not JSON"),
        (200, b"\xff"),
        (200, b"[]"),
        (200, b'"Items"'),
    ],
)
def test_errors_and_responses_without_items_are_left_to_the_sdk(
    clients: tuple[Answered, Answered],
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    status: int,
    body: bytes,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the SDK's tries
    ours, theirs = clients
    began = ours.sent, theirs.sent
    assert ours.call(operation, body, status) == theirs.call(operation, body, status)
    assert ours.sent - began[0] == theirs.sent - began[1]


def test_a_body_that_is_not_json_did_not_come_from_aws(clients: tuple[Answered, Answered]) -> None:
    assert clients[0].call("Query", b'{"Items": [') is NotFromAws


@pytest.mark.parametrize("operation", ITEMS_OF)
def test_a_response_with_a_wrong_checksum_is_asked_for_again(
    clients: tuple[Answered, Answered], monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the SDK's tries
    ours, _ = clients
    body = b'{"Items": [{"a": {"B": "YQ=="}}], "Responses": {"t": [{"a": {"B": "YQ=="}}]}}'
    began = ours.sent
    ours.call(operation, body, x_amz_crc32=str(crc32(body)))
    assert ours.sent - began == 1
    ours.call(operation, body, x_amz_crc32=str(crc32(body) ^ 1))
    assert ours.sent - began == 3


@pytest.mark.parametrize("operation", ITEMS_OF)
def test_the_sdk_gets_a_body_without_items(
    clients: tuple[Answered, Answered], operation: str
) -> None:
    bodies: list[Any] = []

    def note(response_dict: Any, **_: Any) -> None:
        bodies.append(json.loads(response_dict["body"]))

    ours, _ = clients
    events = ours._client.meta.events
    events.register_last("before-parse.dynamodb", note)
    body = b'{"Items": [{"a": {"S": "b"}}], "Responses": {"t": [{"a": {"S": "b"}}]}, "Count": 1}'
    found = ours.call(operation, body)[ITEMS_OF[operation]]
    events.unregister("before-parse.dynamodb", note)
    assert found in ([{"a": {"S": "b"}}], {"t": [{"a": {"S": "b"}}]})
    [rest] = bodies
    assert ITEMS_OF[operation] not in rest
    assert rest["Count"] == 1
