"""POST /messages through the gateway, to real sockets."""

from itertools import chain

import pytest

from tests.support.clients import Client, eventually


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> str:
    """A tenant of the test's own, so that `all` reaches nobody else."""
    return str(request.node.name)


def test_a_message_reaches_every_connection_of_the_named_users_and_no_other(
    herald: Client, user: str
) -> None:
    phone, laptop = herald.connect(user), herald.connect(user)
    named, other = herald.connect(f"{user}-named"), herald.connect(f"{user}-other")

    report = herald.report({"users": [user, f"{user}-named"]}, {"text": "hi ☃"})

    assert report.pop("id")
    assert report == {
        "recipients": 3, "delivered": 3, "gone": 0, "stale": 0, "rejected": 0, "failed": [],
    }  # fmt: skip
    for socket in (phone, laptop, named):
        assert socket.messages() == [{"text": "hi ☃"}]
        socket.assert_quiet()
    other.assert_quiet()


def test_a_frame_has_the_id_type_sender_data_and_time(herald: Client, user: str) -> None:
    socket = herald.connect(user)
    body = {"to": {"users": [user]}, "type": "chat", "data": [1, None, {"a": 0.5}]}
    answer = herald.post(body, "sender").json()
    assert isinstance(answer["durationMs"], int)
    frame = socket.receive()
    [message] = frame["messages"]
    assert isinstance(message.pop("timestamp"), int)
    assert message == {
        "id": answer["messages"][0]["id"],
        "type": "chat",
        "from": "sender",
        "data": [1, None, {"a": 0.5}],
    }


def test_all_reaches_the_tenant_except_the_named_users_and_connections(
    herald: Client, tenant: str
) -> None:
    sockets = {name: herald.connect(name, tenant=tenant) for name in ("a", "b", "c", "d")}
    other_tenant, no_tenant = herald.connect("a", tenant=f"{tenant}-2"), herald.connect("a")
    connection_id = herald.connection_id("c", tenant)

    to = {"all": True, "exceptUsers": ["b"], "exceptConnections": [connection_id]}
    report = herald.report(to, tenant=tenant)

    assert (report["recipients"], report["delivered"]) == (2, 2)
    for name in ("a", "d"):
        assert sockets[name].messages() == ["hello"]
    for socket in (sockets["b"], sockets["c"], other_tenant, no_tenant):
        socket.assert_quiet()


def test_a_message_to_a_connection_id_reaches_only_that_connection_once(
    herald: Client, tenant: str
) -> None:
    first = herald.connect("a", tenant=tenant)
    connection_id = herald.connection_id("a", tenant)
    second = herald.connect("a", tenant=tenant)

    report = herald.report(
        {"connections": [connection_id, "unknown", connection_id]}, tenant=tenant
    )

    assert (report["recipients"], report["delivered"], report["failed"]) == (1, 1, [])
    assert first.messages() == ["hello"]
    second.assert_quiet()


def test_connections_of_another_tenant_are_not_reached(herald: Client, tenant: str) -> None:
    socket = herald.connect("a", tenant=tenant)
    connection_id = herald.connection_id("a", tenant)
    for other in ({}, {"tenant": f"{tenant}-2"}):
        assert herald.report({"connections": [connection_id]}, **other)["recipients"] == 0
        assert herald.report({"users": ["a"]}, **other)["recipients"] == 0
    socket.assert_quiet()


def test_a_message_to_a_user_without_connections_succeeds(herald: Client, user: str) -> None:
    report = herald.report({"users": [user]})
    assert (report["recipients"], report["failed"]) == (0, [])


def test_messages_of_one_request_arrive_in_order_in_one_frame(herald: Client, user: str) -> None:
    socket = herald.connect(user)
    to = {"users": [user]}
    messages = [{"to": to, "data": number} for number in range(10)]
    messages.insert(5, {"to": {"users": [f"{user}-other"]}, "data": "not for you"})

    answer = herald.post({"messages": messages})

    assert answer.status_code == 200
    reports = answer.json()["messages"]
    ids = [report["id"] for report in reports]
    assert ids == sorted(set(ids))
    assert [report["delivered"] for report in reports] == [1] * 5 + [0] + [1] * 5
    assert socket.messages() == list(range(10))


def test_large_messages_are_split_over_frames_in_order(herald: Client, user: str) -> None:
    socket = herald.connect(user)
    data = [f"{number}{'x' * 15_000}" for number in range(5)]
    herald.post({"messages": [{"to": {"users": [user]}, "data": text} for text in data]})
    frames = [socket.messages() for _ in range(3)]
    assert [len(frame) for frame in frames] == [2, 2, 1]
    assert list(chain(*frames)) == data


def test_a_gone_connection_is_reported_removed_and_the_rest_is_reached(
    herald: Client, user: str
) -> None:
    """A lost `$disconnect` leaves a connection in the table that no longer exists."""
    alive = herald.connect(user)
    ghost = _ghost(herald, user)

    report = herald.report({"users": [user]})

    assert report["failed"] == [{"connectionId": ghost, "userId": user, "reason": "gone"}]
    assert (report["recipients"], report["delivered"], report["gone"]) == (2, 1, 1)
    assert alive.messages() == ["hello"]
    assert herald.report({"users": [user]})["recipients"] == 1
    assert herald.presence(user)["connections"] == 1


def test_each_kind_of_audience_needs_its_scope(herald: Client, user: str) -> None:
    to_users, to_all = {"users": [user]}, {"all": True}
    for to, scope, status in (
        (to_users, "messages:send", 200),
        (to_users, "messages:broadcast ws:connect", 403),
        (to_all, "messages:broadcast", 200),
        (to_all, "messages:send", 403),
    ):
        answer = herald.post({"to": to, "data": 1}, user, scope=scope, tenant=user)
        assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "forbidden"


def test_nothing_is_sent_when_one_message_of_a_request_is_forbidden(
    herald: Client, user: str
) -> None:
    socket = herald.connect(user)
    messages = [{"to": {"users": [user]}, "data": 1}, {"to": {"all": True}, "data": 2}]
    answer = herald.post({"messages": messages}, scope="messages:send")
    assert answer.status_code == 403
    socket.assert_quiet()


def _ghost(herald: Client, user: str) -> str:
    """Store a connection of `user` that has no socket; return its id."""
    socket = herald.connect(user, tenant="ghosts")
    [item] = herald.connections(user, "ghosts")
    socket.connection.close()
    eventually(lambda: not herald.connections(user, "ghosts"))
    del item["tenant"]
    herald.tables.put_item(TableName="herald-connections", Item=item)
    herald.tables.update_item(
        TableName="herald-users",
        Key={"user": {"S": f"/{user}"}},
        UpdateExpression="ADD connections :ids SET #reach = :reach",
        ExpressionAttributeNames={"#reach": f"@{item['connectionId']['S']}"},
        ExpressionAttributeValues={
            ":ids": {"SS": [item["connectionId"]["S"]]},
            ":reach": item["reach"],
        },
    )
    return str(item["connectionId"]["S"])
