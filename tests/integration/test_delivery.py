"""The effects of failing requests to `@connections` on connections, reports and notices."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.aws.emulator import client
from tests.support.clients import LEAVE, Client, Socket, eventually, token
from tests.support.stub import Stub, stub

TOPIC = "arn:aws:sns:us-east-1:000000000000:herald-notices"

Start = Callable[..., Client]


@pytest.fixture
def stubbed() -> Iterator[Stub]:
    with stub() as endpoint:
        yield endpoint


@pytest.fixture
def herald(herald_with: Start, stubbed: Stub) -> Client:
    """Start a gateway whose functions deliver to the stub."""
    return herald_with(HERALD_MANAGEMENT_ENDPOINT=stubbed.endpoint)


def ids_of(herald: Client, user: str) -> list[str]:
    return [item["connectionId"]["S"] for item in herald.connections(user)]


def two_devices(herald: Client, user: str) -> tuple[str, str]:
    """Open two connections of a user; return their ids in that order."""
    herald.connect(user)
    first = herald.connection_id(user)
    herald.connect(user)
    [second] = set(ids_of(herald, user)) - {first}
    return first, second


def notices(stubbed: Stub, connection_id: str) -> list[Any]:
    frames = [json.loads(body) for body in stubbed.received(connection_id)]
    return [frame for frame in frames if frame["type"] == "notice"]


def test_100_messages_to_50_users_need_one_request_for_each_connection(
    herald: Client, stubbed: Stub, user: str
) -> None:
    users = [f"user-{number}" for number in range(50)]
    sockets = [herald.connect(user) for user in users]
    herald.connect(users[0])
    connections = Counter(connection for user in users for connection in ids_of(herald, user))
    assert len(connections) == len(sockets) + 1

    to_all_of_them = [{"to": {"users": users}, "data": number} for number in range(100)]
    to_two_each = [{"to": {"users": [users[number % 50]]}, "data": number} for number in range(100)]
    requests = ((user, to_all_of_them, list(range(100))), (f"{user}-2", to_two_each, [7, 57]))
    for sender, messages, expected in requests:  # the first sender has to wait for more units
        stubbed.requests.clear()
        answer = herald.post({"messages": messages}, sender)
        assert answer.status_code == 200
        assert stubbed.counts() == connections
        [seventh] = ids_of(herald, users[7])
        [body] = stubbed.received(seventh)
        assert [message["data"] for message in json.loads(body)["messages"]] == expected


def test_a_rejected_connection_is_removed_and_its_user_is_notified(
    herald_with: Start, stubbed: Stub, user: str
) -> None:
    herald = herald_with(HERALD_MANAGEMENT_ENDPOINT=stubbed.endpoint, HERALD_NOTIFY_TOPIC_ARN=TOPIC)
    queue = subscribed_queue(herald)
    rejected, other = two_devices(herald, user)
    stubbed.behaviours[rejected] = ["403 ForbiddenException"]

    report = herald.report({"users": [user]})

    assert (report["recipients"], report["delivered"], report["rejected"]) == (2, 1, 1)
    assert report["failed"] == [{"connectionId": rejected, "userId": user, "reason": "http_403"}]
    assert ids_of(herald, user) == [other]
    assert herald.presence(user)["connections"] == 1
    notice = {
        "type": "notice",
        "code": "connection_removed",
        "connectionId": rejected,
        "reason": "http_403",
    }
    assert notices(stubbed, other) == [notice]
    assert stubbed.counts()[rejected] == 1
    assert stubbed.deletes == [rejected]
    published = queue()
    assert json.loads(published["Message"]) == notice
    assert published["MessageAttributes"]["userId"]["Value"] == user


def test_a_rejected_connection_stays_while_its_socket_cannot_be_closed(
    herald: Client, stubbed: Stub, user: str
) -> None:
    rejected, other = two_devices(herald, user)
    stubbed.behaviours[rejected] = [400]
    stubbed.delete_behaviours[rejected] = 503
    assert herald.report({"users": [user]})["rejected"] == 1
    assert sorted(ids_of(herald, user)) == sorted([rejected, other])
    assert notices(stubbed, other) == []

    stubbed.delete_behaviours[rejected] = 204
    assert herald.report({"users": [user]})["rejected"] == 1
    assert ids_of(herald, user) == [other]
    assert len(notices(stubbed, other)) == 1


def test_the_sweep_notifies_users_within_their_tenant(
    herald_with: Start, stubbed: Stub, user: str
) -> None:
    """As after an API was replaced, when probes of its connections are refused."""
    herald = herald_with(
        HERALD_MANAGEMENT_ENDPOINT=stubbed.endpoint,
        HERALD_STALE_AFTER_SECONDS="1",
        GATEWAY_SCHEDULE_SECONDS="0.5",
    )
    lost: dict[str, set[str]] = {}
    others: dict[str, str] = {}
    for tenant in ("north", "south"):
        herald.connect(user, tenant=tenant)
        others[tenant] = herald.connection_id(user, tenant)
        for _ in range(4):  # so that one of the sweep's shards has some of both tenants
            herald.connect(user, tenant=tenant)
        ids = {item["connectionId"]["S"] for item in herald.connections(user, tenant)}
        lost[tenant] = ids - {others[tenant]}
    stubbed.get_behaviours |= dict.fromkeys(others.values(), 200)
    stubbed.get_behaviours |= dict.fromkeys(lost["north"] | lost["south"], 403)

    def noticed(tenant: str) -> set[str]:
        return {notice["connectionId"] for notice in notices(stubbed, others[tenant])}

    for tenant in ("north", "south"):
        eventually(lambda tenant=tenant: noticed(tenant) >= lost[tenant])
        assert noticed(tenant) == lost[tenant]
        assert herald.connection_id(user, tenant) == others[tenant]


def subscribed_queue(herald: Client) -> Callable[[], Any]:
    """Subscribe a queue to the topic; return a function that waits for the next notice."""
    sns, sqs = client("sns", herald.running.aws), client("sqs", herald.running.aws)
    assert sns.create_topic(Name=TOPIC.rpartition(":")[2])["TopicArn"] == TOPIC
    url = sqs.create_queue(QueueName="notices")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    sns.subscribe(TopicArn=TOPIC, Protocol="sqs", Endpoint=arn["Attributes"]["QueueArn"])
    sns.close()

    def receive() -> Any:
        [message] = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=5)["Messages"]
        sqs.close()
        return json.loads(message["Body"])

    return receive


def test_a_topic_that_fails_does_not_fail_the_message(
    herald_with: Start, stubbed: Stub, user: str
) -> None:
    herald = herald_with(HERALD_MANAGEMENT_ENDPOINT=stubbed.endpoint, HERALD_NOTIFY_TOPIC_ARN=TOPIC)
    rejected, other = two_devices(herald, user)
    stubbed.behaviours[rejected] = [400]
    assert herald.report({"users": [user]})["rejected"] == 1
    assert len(notices(stubbed, other)) == 1


def test_a_rejected_notice_causes_no_further_notice(
    herald: Client, stubbed: Stub, user: str
) -> None:
    """Otherwise a missing permission, which rejects everything, would cause notices without end."""
    first, second = two_devices(herald, user)
    stubbed.behaviours = {first: [403], second: [200, 403]}
    report = herald.report({"users": [user]})
    assert (report["delivered"], report["rejected"]) == (1, 1)
    assert ids_of(herald, user) == []
    assert stubbed.counts() == {first: 1, second: 2}


def test_a_connection_that_fails_is_stale_until_its_client_sends_a_frame(
    herald: Client, stubbed: Stub, user: str
) -> None:
    socket: Socket = herald.connect(user)
    connection = herald.connection_id(user)
    stubbed.behaviours[connection] = [503]
    report = herald.report({"users": [user]})
    assert (report["stale"], report["failed"][0]["reason"]) == (1, "http_503")
    assert herald.connections(user)[0]["status"]["S"] == "stale"
    assert stubbed.counts()[connection] == 4

    stubbed.behaviours[connection] = [200]
    assert herald.report({"users": [user]})["delivered"] == 1
    assert shown_status(herald, user) == "stale"
    socket.connection.send(json.dumps(LEAVE))
    eventually(lambda: shown_status(herald, user) == "active")


def shown_status(herald: Client, user: str) -> str:
    """Return the status of a user's only connection, as REST shows it."""
    headers = {"Authorization": f"Bearer {token(user)}"}
    [shown] = herald.http.get(f"/users/{user}/connections", headers=headers).json()["connections"]
    return str(shown["status"])


def test_gone_connections_are_removed_without_a_notice(
    herald: Client, stubbed: Stub, user: str
) -> None:
    gone, other = two_devices(herald, user)
    stubbed.behaviours[gone] = ["410 GoneException"]
    report = herald.report({"users": [user]})
    assert (report["delivered"], report["gone"]) == (1, 1)
    assert ids_of(herald, user) == [other]
    assert notices(stubbed, other) == []


def test_nothing_is_sent_when_one_message_of_a_request_is_too_large(
    herald: Client, stubbed: Stub, user: str
) -> None:
    herald.connect(user)
    to = {"users": [user]}
    answer = herald.post(
        {"messages": [{"to": to, "data": 1}, {"to": to, "data": "x" * 128 * 1024}]}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    assert stubbed.requests == []
