"""The border between tenants: every route and action is tried across it.

Two tenants have users and groups of the same names, and the other side has one more user. A client
with every scope that tries to see or reach the other side gets the answers for a user that doesn't
exist, and nothing changes there.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from chalicelib.auth.principal import Principal
from chalicelib.clock import now_ms
from chalicelib.fanout.progress import Progress
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import accept, parse_message
from chalicelib.protocol.ulid import Stamp, earliest
from chalicelib.store.dynamodb import Store
from tests.gateway.api.test_authorization import invoke
from tests.support.clients import Client, Socket, configured, eventually, served, token
from tests.support.stub import stub
from tests.support.tables import TABLES, scan

KEYS = {"keys": [{"kty": "oct", "kid": "k", "k": "bmV3" * 11}]}
BORDERS = [("north", "south"), (None, "north"), ("north", None), ("a", "a/b"), ("a/b", "a")]
USERS = ["alice", "bob"]
BEYOND = "dora"  # a user on the other side only
NOBODY = "nobody"  # a user on neither side
TEAM, THEIRS, NO_GROUP = "team", "theirs", "no-group"


class Side(NamedTuple):
    """The clients of one tenant."""

    tenant: str | None
    sockets: dict[str, Socket]
    ids: dict[str, str]

    def request(self, herald: Client, method: str, path: str, body: Any = None) -> httpx.Response:
        """Send a request as the tenant's alice, with every scope."""
        headers = {"Authorization": f"Bearer {self.token('alice')}"}
        return herald.http.request(method, path, json=body, headers=headers)

    def token(self, user: str) -> str:
        return token(user, tenant=self.tenant, groups=[TEAM, "*"])


def side(herald: Client, tenant: str | None, users: list[str], *groups: str) -> Side:
    sockets, ids = {}, {}
    for user in users:
        sockets[user] = herald.connect(user, tenant=tenant, groups=[TEAM, *groups, "*"])
        ids[user] = herald.connection_id(user, tenant)
    return Side(tenant, sockets, ids)


@pytest.fixture(scope="module")
def herald() -> Iterator[Client]:
    environment = {"HERALD_ENCRYPTION_KEYS": json.dumps(KEYS), "HERALD_MESSAGE_RATE": "1000"}
    with served(configured(HERALD_MESSAGE_BURST="1000", **environment)) as running:
        client = Client(running)
        yield client
        client.close()


@pytest.fixture(params=BORDERS, ids=str)
def border(herald: Client, request: pytest.FixtureRequest) -> Iterator[tuple[Side, Side]]:
    """The attacking side and the other one, which must be unchanged afterwards."""
    here = side(herald, request.param[0], USERS)
    there = side(herald, request.param[1], [*USERS, BEYOND], THEIRS)
    before = stored(herald, there)
    yield here, there
    assert stored(herald, there) == before
    # The other side was reachable: its own message is the first one that it receives.
    report = there.request(herald, "POST", "/messages", {"to": {"all": True}, "data": "ours"})
    assert report.json()["messages"][0]["delivered"] == len(there.sockets)
    for socket in there.sockets.values():
        assert socket.messages() == ["ours"]
    forget(herald, here, there)


def forget(herald: Client, *sides: Side) -> None:
    """Close the sockets and delete the users, for the next test."""
    for one in sides:
        for socket in one.sockets.values():
            socket.connection.close()
    eventually(lambda: not list(scan(herald.tables, TABLES.connections)))
    for item in scan(herald.tables, TABLES.users):
        herald.tables.delete_item(TableName=TABLES.users, Key={"user": item["user"]})


def stored(herald: Client, one: Side) -> list[str]:
    """Return the stored connections and group memberships of a tenant."""
    items = [
        item for table in (TABLES.connections, TABLES.groups) for item in scan(herald.tables, table)
    ]
    owned = [item for item in items if item.get("tenant", {}).get("S") == one.tenant]
    return sorted(json.dumps(item, sort_keys=True, default=sorted) for item in owned)


def told(answer: Any, *own_words: str) -> Any:
    """Return an answer without its ids and times, and with `own_words` masked."""
    text = answer if isinstance(answer, str) else json.dumps(answer)
    for word in own_words:
        text = text.replace(word, "…")
    value = json.loads(text)
    for report in [value, *value.get("messages", [])]:
        report.pop("id", None)
        report.pop("durationMs", None)
        report.pop("timestamp", None)
    return value


Attack = Callable[[Client, Side, Side], None]


def audiences(there: Side) -> list[tuple[Any, Any]]:
    """Return audiences on the other side, each with a similar one that is empty."""
    ids = list(there.ids.values())
    return [
        ({"users": [BEYOND]}, {"users": [NOBODY]}),
        ({"groups": [THEIRS]}, {"groups": [NO_GROUP]}),
        ({"connections": ids}, {"connections": ["AAAAAAAAAAAAAAA=" for _ in ids]}),
        ({"connections": ids, "exceptConnections": ids[:1]}, {"connections": ["A"]}),
        ({"users": [BEYOND], "exceptUsers": ["bob"]}, {"users": [NOBODY]}),
    ]


def reach_own(here: Side, send: Callable[[Any], Any]) -> None:
    """Check that names that both sides have lead to one's own side."""
    for to, names in (
        ({"all": True}, USERS),
        ({"groups": [TEAM]}, USERS),
        ({"users": ["bob"]}, ["bob"]),
        ({"users": ["bob", BEYOND]}, ["bob"]),
        ({"groups": [TEAM, THEIRS]}, USERS),
    ):
        assert send(to)["recipients"] == len(names)
        for name in names:
            assert here.sockets[name].messages() == ["hello"]


def post_messages(herald: Client, here: Side, there: Side) -> None:
    def send(to: Any, *, encrypt: bool = False) -> Any:
        body = {"to": to, "data": "hello", "encrypt": encrypt}
        [report] = here.request(herald, "POST", "/messages", body).json()["messages"]
        return report

    for theirs, nobodys in audiences(there):
        for encrypt in (False, True):
            assert told(send(theirs, encrypt=encrypt)) == told(send(nobodys))
        assert send(theirs)["recipients"] == 0
    reach_own(here, send)


def queued_message(herald: Client, one: Side) -> str:
    """Return the id of a message that a tenant's alice has queued."""
    sender = Principal("alice", 10**12, tenant=one.tenant)
    stamp = Stamp.fresh(now_ms())
    draft = parse_message({"to": {"all": True}, "data": 1}, may_encrypt=False)
    [message] = accept([draft], sender="alice", stamp=stamp)
    Progress(Store(herald.tables, TABLES), Encryption(None)).begin([message], sender, 1)
    return message.id


def see_a_message(herald: Client, here: Side, there: Side) -> None:
    """Check that queued messages of the other side are answered like unknown ones."""
    theirs, own = queued_message(herald, there), queued_message(herald, here)
    absent = here.request(herald, "GET", "/messages/01ARZ3NDEKTSV4RRFFQ69G5FAV")
    answer = here.request(herald, "GET", f"/messages/{theirs}")
    assert (answer.status_code, answer.text) == (404, absent.text)
    assert here.request(herald, "GET", f"/messages/{own}").json()["id"] == own


def see_a_user(herald: Client, here: Side, there: Side) -> None:
    theirs = here.request(herald, "GET", f"/users/{BEYOND}").text
    assert told(theirs, BEYOND) == told(
        here.request(herald, "GET", f"/users/{NOBODY}").text, NOBODY
    )
    assert here.request(herald, "GET", "/users/bob").json()["connections"] == 1


def see_connections(herald: Client, here: Side, there: Side) -> None:
    assert here.request(herald, "GET", f"/users/{BEYOND}/connections").json() == {"connections": []}
    [own] = here.request(herald, "GET", "/users/bob/connections").json()["connections"]
    assert own["connectionId"] == here.ids["bob"]


def close_connections(herald: Client, here: Side, there: Side) -> None:
    for user in (BEYOND, NOBODY):
        answer = here.request(herald, "DELETE", f"/users/{user}/connections")
        assert (answer.status_code, answer.content) == (204, b"")
    here.request(herald, "DELETE", "/users/bob/connections")
    assert here.sockets["bob"].closed_with()[0] == 1000


def close_a_connection(herald: Client, here: Side, there: Side) -> None:
    for owner in (BEYOND, "bob", "alice", NOBODY):
        for connection_id in (*there.ids.values(), "AAAAAAAAAAAAAAA="):
            path = f"/users/{owner}/connections/{connection_id.replace('=', '%3D')}"
            answer = here.request(herald, "DELETE", path)
            assert (answer.status_code, answer.content) == (204, b"")


def fetch_keys(herald: Client, here: Side, there: Side) -> None:
    [own] = here.request(herald, "GET", "/keys").json()["keys"]
    [theirs] = there.request(herald, "GET", "/keys").json()["keys"]
    assert own["k"] != theirs["k"]


def ask_for_health(herald: Client, here: Side, there: Side) -> None:
    assert herald.http.get("/health").json() == {"status": "ok"}


ROUTES: dict[tuple[str, str], Attack] = {
    ("POST", "/messages"): post_messages,
    ("GET", "/messages/{message_id}"): see_a_message,
    ("GET", "/users/{user_id}"): see_a_user,
    ("GET", "/users/{user_id}/connections"): see_connections,
    ("DELETE", "/users/{user_id}/connections"): close_connections,
    ("DELETE", "/users/{user_id}/connections/{connection_id}"): close_a_connection,
    ("GET", "/keys"): fetch_keys,
    ("GET", "/health"): ask_for_health,
}


def ping(herald: Client, here: Side, there: Side) -> None:
    assert told(here.sockets["alice"].ask({"action": "ping"})) == {"type": "pong"}


def send_a_heartbeat(herald: Client, here: Side, there: Side) -> None:
    assert told(here.sockets["alice"].ask({"action": "heartbeat"})) == {"type": "heartbeat"}


def send_a_message(herald: Client, here: Side, there: Side) -> None:
    socket = here.sockets["alice"]

    def send(to: Any) -> Any:
        socket.connection.send(json.dumps({"action": "send", "to": to, "data": "hello"}))
        frames = [socket.receive()]
        if frames[0]["type"] == "messages":  # the sender's own copy arrives before the ack
            held.append(frames[0])
            frames = [socket.receive()]
        assert frames[0]["type"] == "ack"
        return frames[0]

    held: list[Any] = []
    for theirs, nobodys in audiences(there):
        assert told(send(theirs)) == told(send(nobodys))
    for to, count in (({"all": True}, 2), ({"groups": [TEAM, THEIRS]}, 2), ({"users": ["bob"]}, 1)):
        assert send(to)["recipients"] == count
    assert len(held) == 2
    assert sum(len(here.sockets["bob"].messages()) for _ in range(3)) == 3


def join_a_group(herald: Client, here: Side, there: Side) -> None:
    """Check that a group of the same name is another group, with only the joiner in it."""
    socket = here.sockets["alice"]
    assert socket.ask({"action": "join", "group": THEIRS})["type"] == "joined"
    body = {"to": {"groups": [THEIRS]}, "data": "for them"}
    assert there.request(herald, "POST", "/messages", body).json()["messages"][0]["delivered"] == 3
    for theirs in there.sockets.values():
        assert theirs.messages() == ["for them"]
    for own in here.sockets.values():
        own.assert_quiet()


def leave_a_group(herald: Client, here: Side, there: Side) -> None:
    socket = here.sockets["alice"]
    answers = [socket.ask({"action": "leave", "group": group}) for group in (THEIRS, NO_GROUP)]
    assert told(answers[0], THEIRS) == told(answers[1], NO_GROUP)
    socket.ask({"action": "join", "group": THEIRS})
    socket.ask({"action": "leave", "group": THEIRS})


def resume_messages(herald: Client, here: Side, there: Side) -> None:
    """Check that a resume returns no messages sent to the same names on the other side."""
    after = earliest(now_ms())
    secret = f"of {there.tenant}, kept from {here.tenant}"
    for to in ({"users": ["alice"]}, {"groups": [TEAM, THEIRS]}, {"all": True}):
        body = {"to": to, "data": secret}
        assert there.request(herald, "POST", "/messages", body).status_code == 200
    for user, theirs in there.sockets.items():
        for _ in range(3 if user == "alice" else 2):
            assert theirs.messages() == [secret]
    answer = here.sockets["alice"].ask({"action": "resume", "after": after})
    while answer["type"] == "messages":  # messages that other tests sent to this tenant
        assert secret not in json.dumps(answer)
        answer = here.sockets["alice"].receive()
    assert answer["type"] == "resumed"


def refresh_the_token(herald: Client, here: Side, there: Side) -> None:
    socket = here.sockets["alice"]
    answers = [
        socket.ask({"action": "refresh", "token": bearer})
        for bearer in (
            there.token("alice"),
            there.token(BEYOND),
            here.token("bob"),
            token("alice", tenant="nowhere"),
        )
    ]
    assert answers[0]["code"] == "forbidden"
    assert all(answer == answers[0] for answer in answers)


ACTIONS: dict[str, Attack] = {
    "ping": ping,
    "heartbeat": send_a_heartbeat,
    "send": send_a_message,
    "join": join_a_group,
    "leave": leave_a_group,
    "resume": resume_messages,
    "refresh": refresh_the_token,
}


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_no_route_reaches_another_tenant(
    herald: Client, border: tuple[Side, Side], route: tuple[str, str]
) -> None:
    ROUTES[route](herald, *border)


@pytest.mark.parametrize("action", ACTIONS)
def test_no_action_reaches_another_tenant(
    herald: Client, border: tuple[Side, Side], action: str
) -> None:
    ACTIONS[action](herald, *border)


def test_every_route_and_action_has_a_border_test(herald: Client) -> None:
    [declared] = invoke()
    assert set(ROUTES) == {
        (method, path) for path, of in declared["routes"].items() for method in of
    }
    here = side(herald, None, ["alice"])
    answer = here.sockets["alice"].ask({"action": "?"})
    assert answer["message"] == f"action must be one of {', '.join(ACTIONS)}"
    forget(herald, here)


def test_a_notice_goes_only_to_the_users_own_tenant(herald_with: Callable[..., Client]) -> None:
    with stub() as stubbed:
        herald = herald_with(HERALD_MANAGEMENT_ENDPOINT=stubbed.endpoint)
        here = side(herald, "north", ["alice", "bob"])
        second = herald.connect("bob", tenant="north")
        there = side(herald, "south", ["bob"])
        stubbed.behaviours[here.ids["bob"]] = ["403 ForbiddenException"]
        body = {"to": {"users": ["bob"]}, "data": 1}
        [report] = here.request(herald, "POST", "/messages", body).json()["messages"]
        assert (report["recipients"], report["delivered"], report["rejected"]) == (2, 1, 1)
        [other] = herald.connections("bob", "north")
        frames = [
            json.loads(frame)["type"] for frame in stubbed.received(other["connectionId"]["S"])
        ]
        assert frames == ["messages", "notice"]
        assert stubbed.received(there.ids["bob"]) == []
        assert herald.connections("bob", "south")
        second.connection.close()


def test_users_of_the_same_name_in_two_tenants_do_not_share_limits(
    herald_with: Callable[..., Client],
) -> None:
    herald = herald_with(
        HERALD_MAX_CONNECTIONS_PER_USER="1",
        HERALD_CONNECTION_LIMIT_POLICY="evict-oldest",
        HERALD_DAILY_MESSAGE_QUOTA="1",
    )
    theirs = herald.connect("bob", tenant="south")
    first = herald.connect("bob", tenant="north")
    herald.connect("bob", tenant="north")
    assert first.receive()["reason"] == "connection_limit"
    theirs.assert_quiet()
    body = {"to": {"users": [NOBODY]}, "data": 1}
    for tenant in ("north", "south", None):
        assert herald.post(body, "bob", tenant=tenant).status_code == 200
        assert herald.post(body, "bob", tenant=tenant).json()["code"] == "quota_exceeded"
