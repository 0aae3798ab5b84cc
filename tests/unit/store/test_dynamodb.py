"""The store's errors and retries, with what DynamoDB does and no emulator."""

from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError, ConnectTimeoutError
from botocore.session import Session

from chalicelib.errors import Contended, Unavailable
from chalicelib.store.dynamodb import THROTTLED_CODES, Cancelled, Retries, Store, dynamodb_client
from chalicelib.store.expressions import Clause, delete, put, update
from chalicelib.store.schema import connection_key, user_item_key
from tests.support.tables import TABLES, Counted

AT_ONCE = Retries(batch_backoff_seconds=0, conflict_backoff_seconds=0)
ABSENT = Clause(when=("attribute_not_exists(#user)",), names={"#user": "user"})


def set_number(user: str) -> Any:
    clause = Clause(set=("n = :n",), values={":n": {"N": "1"}})
    return update(TABLES.users, user_item_key(user), clause)


class Conflicting(Counted):
    """Cancels a number of transactions, as if they lost against another on the same item."""

    def __init__(self, client: Any, losses: int, code: str = "TransactionConflict") -> None:
        super().__init__(client)
        self.losses = losses
        self.code = code

    def transact_write_items(self, **parameters: Any) -> Any:
        self.calls.append("transact_write_items")
        if len(self.calls) <= self.losses:
            reasons = [{"Code": "None"}, {"Code": self.code}]
            response: Any = {
                "Error": {"Code": "TransactionCanceledException", "Message": ""},
                "CancellationReasons": reasons,
            }
            raise ClientError(response, "TransactWriteItems")
        return self._client.transact_write_items(**parameters)


CANCELLATIONS = ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"]


@pytest.mark.parametrize("code", CANCELLATIONS)
def test_a_conflict_and_a_throttled_transaction_are_retried(
    dynamodb: Any, user: str, code: str
) -> None:
    client: Any = Conflicting(dynamodb, 2, code)
    store = Store(client, TABLES, AT_ONCE)
    store.transact([set_number(user)])
    assert len(client.calls) == 3
    assert store.get(TABLES.users, user_item_key(user))


def test_too_many_conflicts_raise_contended(dynamodb: Any, user: str) -> None:
    client: Any = Conflicting(dynamodb, 1000)
    with pytest.raises(Contended) as contended:
        Store(client, TABLES, AT_ONCE).transact([set_number(user)])
    assert contended.value.retry_after
    assert len(client.calls) == AT_ONCE.conflict_tries


def test_a_cancelled_transaction_has_the_items_whose_conditions_failed(
    dynamodb: Any, user: str
) -> None:
    store = Store(dynamodb, TABLES)
    item = user_item_key(user)
    store.put(TABLES.users, item)
    other = user_item_key(f"{user}-other")
    with pytest.raises(Cancelled) as cancelled:
        store.transact([put(TABLES.users, other, ABSENT), put(TABLES.users, item, ABSENT)])
    assert cancelled.value.items == [None, item]
    assert store.get(TABLES.users, other) is None


def test_a_cancelled_update_has_the_item(dynamodb: Any, user: str) -> None:
    store = Store(dynamodb, TABLES)
    store.put(TABLES.users, user_item_key(user))
    clause = Clause(set=("n = :n",), values={":n": {"N": "1"}})
    with pytest.raises(Cancelled) as cancelled:
        store.update(update(TABLES.users, user_item_key(user), clause, ABSENT))
    assert cancelled.value.items == [user_item_key(user)]


def test_check_reads_every_table(dynamodb: Any) -> None:
    client: Any = Counted(dynamodb)
    Store(client, TABLES).check()
    assert client.calls == ["batch_get_item"]


class Failing:
    """A DynamoDB client whose calls all raise `error`."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, operation: str) -> Any:
        def call(**parameters: Any) -> Any:
            raise self._error

        return call


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": ""}}, "GetItem")


@pytest.mark.parametrize(
    "error", [ConnectTimeoutError(endpoint_url="here"), refusal("ProvisionedThroughputExceeded")]
)
def test_an_error_of_dynamodb_is_unavailable(error: Exception) -> None:
    client: Any = Failing(error)
    with pytest.raises(Unavailable) as unavailable:
        Store(client, TABLES).check()
    assert unavailable.value.retry_after == 1.0


def test_a_bug_in_an_expression_is_not_unavailable() -> None:
    client: Any = Failing(refusal("ValidationException"))
    with pytest.raises(ClientError):
        Store(client, TABLES).get(TABLES.users, user_item_key("u"))


class Throttled(Counted):
    """Leaves all but one item of each batch unwritten."""

    def batch_write_item(self, **parameters: Any) -> Any:
        [(table, requests)] = parameters["RequestItems"].items()
        first, rest = requests[:1], requests[1:]
        self.calls.append("batch_write_item")
        self._client.batch_write_item(RequestItems={table: first})
        return {"UnprocessedItems": {table: rest} if rest else {}}


def test_items_that_a_batch_left_unwritten_are_returned(dynamodb: Any, user: str) -> None:
    client: Any = Throttled(dynamodb)
    store = Store(client, TABLES)
    items = [user_item_key(f"{user}-{number}") for number in range(3)]
    assert store.batch_put(TABLES.users, items) == items[1:]
    assert store.batch_put(TABLES.users, items[1:2]) == []
    assert client.calls == ["batch_write_item"] * 2
    found = [store.get(TABLES.users, item) for item in items]
    assert found == [*items[:2], None]


@pytest.mark.parametrize("code", sorted(THROTTLED_CODES))
def test_a_throttled_batch_is_returned_whole(code: str) -> None:
    client: Any = Failing(refusal(code))
    items = [user_item_key("u"), user_item_key("v")]
    assert Store(client, TABLES).batch_put(TABLES.users, items) == items


@pytest.mark.parametrize(
    "error", [ConnectTimeoutError(endpoint_url="here"), refusal("InternalServerError")]
)
def test_a_batch_that_fails_otherwise_raises_unavailable(error: Exception) -> None:
    client: Any = Failing(error)
    with pytest.raises(Unavailable):
        Store(client, TABLES).batch_put(TABLES.users, [user_item_key("u")])


def test_the_sdk_does_not_wait_for_a_throttled_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would pause for up to a second, and then try once more."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = dynamodb_client(Session())
    sent: list[str] = []

    def throttle(request: Any, **_: Any) -> Any:
        sent.append(request.headers["X-Amz-Target"].decode().partition(".")[2])
        headers: Any = {"content-type": "application/json"}
        response: Any = AWSResponse(request.url, 400, headers, None)
        response._content = b'{"__type": "com.amazonaws.dynamodb.v20120810#ThrottlingException"}'
        return response

    answer: Any = throttle
    client.meta.events.register("before-send.dynamodb", answer)
    store = Store(client, TABLES)
    item = user_item_key("u")
    assert store.batch_put(TABLES.users, [item]) == [item]
    assert sent == ["BatchWriteItem"]
    with pytest.raises(Unavailable):
        store.put(TABLES.users, item)
    assert sent == ["BatchWriteItem", "PutItem", "PutItem"]


class Throttling(Counted):
    """A client that leaves all but the first request of a batch, or refuses the batch, a number of
    times."""

    def __init__(self, client: Any, times: int, code: str | None) -> None:
        super().__init__(client)
        self._times = times
        self._code = code

    def batch_write_item(self, RequestItems: Any) -> Any:  # noqa: N803
        self.calls.append("batch_write_item")
        if self.calls.count("batch_write_item") > self._times:
            return self._client.batch_write_item(RequestItems=RequestItems)
        if self._code is not None:
            raise ClientError({"Error": {"Code": self._code, "Message": ""}}, "BatchWriteItem")
        [(table, [first, *rest]), *others] = RequestItems.items()
        self._client.batch_write_item(RequestItems={table: [first]})
        return {"UnprocessedItems": {**dict(others), **({table: rest} if rest else {})}}


def writes(user: str) -> list[Any]:
    """Return puts and deletes in two tables."""
    table, other = TABLES.users, TABLES.connections
    return [
        *(put(table, user_item_key(f"{user}-{number}")) for number in range(2)),
        delete(table, user_item_key(f"{user}-old")),
        put(other, connection_key(user)),
    ]


@pytest.mark.parametrize("code", [None, *sorted(THROTTLED_CODES)])
def test_what_a_throttled_batch_leaves_is_written_again(
    dynamodb: Any, user: str, code: str | None
) -> None:
    client: Any = Throttling(dynamodb, 2, code)
    store = Store(client, TABLES, AT_ONCE)
    store.put(TABLES.users, user_item_key(f"{user}-old"))
    store.batch_write(writes(user))
    assert client.calls.count("batch_write_item") == 3
    assert store.get(TABLES.connections, connection_key(user))
    found = [store.get(TABLES.users, user_item_key(f"{user}-{one}")) for one in (0, 1, "old")]
    assert [one is None for one in found] == [False, False, True]


@pytest.mark.parametrize("code", [None, "ThrottlingException"])
def test_a_batch_that_stays_throttled_raises_unavailable(
    dynamodb: Any, user: str, code: str | None
) -> None:
    client: Any = Throttling(dynamodb, 1000, code)
    with pytest.raises(Unavailable, match="too busy"):
        Store(client, TABLES, AT_ONCE._replace(batch_tries=2)).batch_write(writes(user))
    assert client.calls == ["batch_write_item"] * 2


def test_a_large_batch_is_written_in_order_25_at_a_time(dynamodb: Any, user: str) -> None:
    client: Any = Counted(dynamodb)
    store = Store(client, TABLES)
    keys = [user_item_key(f"{user}-{number}") for number in range(51)]
    store.batch_write([put(TABLES.users, key) for key in keys])
    assert client.calls == ["batch_write_item"] * 3
    assert all(store.get(TABLES.users, key) for key in keys)
    store.batch_write([])
    assert client.calls.count("batch_write_item") == 3


def test_a_batch_that_fails_raises_unavailable(dynamodb: Any, user: str) -> None:
    client: Any = Throttling(dynamodb, 1, "AccessDeniedException")
    with pytest.raises(Unavailable):
        Store(client, TABLES, AT_ONCE).batch_write(writes(user))
    assert client.calls == ["batch_write_item"]


def test_a_create_and_a_delete_whose_condition_fails_have_the_item(
    dynamodb: Any, user: str
) -> None:
    store, item = Store(dynamodb, TABLES), user_item_key(user)
    store.create(put(TABLES.users, item, ABSENT))
    with pytest.raises(Cancelled) as cancelled:
        store.create(put(TABLES.users, item, ABSENT))
    assert cancelled.value.items == [item]
    with pytest.raises(Cancelled) as cancelled:
        store.delete(delete(TABLES.users, item, ABSENT))
    assert cancelled.value.items == [item]
    store.delete(delete(TABLES.users, item))
    assert store.get(TABLES.users, item) is None
