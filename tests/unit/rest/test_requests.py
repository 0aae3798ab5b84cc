import time
from dataclasses import replace
from typing import Any

import pytest
from chalice.app import Request

from chalicelib.auth.access import AccessRules
from chalicelib.auth.principal import Principal, Scope
from chalicelib.aws_limits import WORK_SECONDS
from chalicelib.errors import BadRequest, Forbidden, InsufficientScope, RateLimited, TokenExpired
from chalicelib.rest.requests import ChargeRead, RestRequest, path_name
from tests.unit.rest.chalice_requests import CALLER, CONTEXT, chalice_request, rules, uncharged

MANAGE = Scope.CONNECTIONS_MANAGE
MANAGER = replace(CALLER, scopes=frozenset({str(MANAGE)}))


def rest_request(caller: Principal = CALLER, **options: Any) -> RestRequest:
    return of(chalice_request(caller, **options), rules())


def of(request: Request, access: AccessRules, charge_read: ChargeRead = uncharged) -> RestRequest:
    return RestRequest(request, CONTEXT, rules=access, charge_read=charge_read)


def test_the_caller_is_the_authorizers_principal() -> None:
    assert rest_request().caller() == CALLER


def test_a_token_that_expired_since_the_authorizer_saw_it_is_refused() -> None:
    with pytest.raises(TokenExpired):
        rest_request(replace(CALLER, expires_at=int(time.time()) - 1)).caller()


def test_a_caller_from_a_denied_address_is_refused() -> None:
    denied = chalice_request(source_ip="10.1.2.3", headers={"X-Forwarded-For": "127.0.0.1"})
    with pytest.raises(Forbidden):
        of(denied, rules(HERALD_IP_DENY="10.0.0.0/8")).caller()


def test_a_caller_from_a_page_of_another_origin_is_refused() -> None:
    allowed = rules(HERALD_ALLOWED_ORIGINS="https://app.example.com")
    foreign = chalice_request(headers={"Origin": "https://evil.example.com"})
    with pytest.raises(Forbidden):
        of(foreign, allowed).caller()
    own = chalice_request(headers={"Origin": "https://app.example.com"})
    assert of(own, allowed).caller() == CALLER


def test_reading_and_naming_an_owner_are_charged_and_sending_is_not() -> None:
    charged: list[Principal] = []
    request = of(chalice_request(), rules(), charged.append)
    request.caller()
    assert charged == []
    assert request.reader() == CALLER
    with pytest.raises(InsufficientScope):
        request.owner("bob", MANAGE)
    assert charged == [CALLER] * 2


def test_a_reader_over_the_rate_is_refused_before_anything_else() -> None:
    def refuse(_: Principal) -> None:
        raise RateLimited("too many requests", retry_after=1.0)

    with pytest.raises(RateLimited):
        of(chalice_request(), rules(), refuse).owner("x" * 129, MANAGE)


def test_users_need_no_scope_for_themselves() -> None:
    assert rest_request().owner("alice", MANAGE) == ("acme", "alice")


def test_users_need_the_scope_for_others_of_their_tenant() -> None:
    assert rest_request(MANAGER).owner("bob", MANAGE) == ("acme", "bob")
    with pytest.raises(InsufficientScope):
        rest_request().owner("bob", MANAGE)


def test_the_names_of_a_path_are_decoded() -> None:
    assert rest_request(MANAGER).owner("a%2Fb%20c", MANAGE) == ("acme", "a/b c")
    assert path_name("connectionId", "abc%3D") == "abc="


def test_a_name_that_is_too_long_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="userId must be a string"):
        rest_request().owner("x" * 129, MANAGE)


def test_the_body_is_what_the_client_sent() -> None:
    assert rest_request(body='{"data": 1}').body == b'{"data": 1}'


def test_a_request_ends_before_api_gateway_stops_waiting() -> None:
    assert WORK_SECONDS - 1 < rest_request().deadline.left() <= WORK_SECONDS
