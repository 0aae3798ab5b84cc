"""The rights of a principal, its key, and its conversion to the authorizer's context."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.auth.principal import Principal, Scope, split_user_key, user_key
from chalicelib.errors import Forbidden, TokenExpired

names = st.text(min_size=1, max_size=20)


@given(
    st.builds(
        Principal,
        user_id=names,
        expires_at=st.integers(0, 2**40),
        tenant=st.none() | names,
        scopes=st.frozensets(st.sampled_from(list(Scope)).map(str)),
        groups=st.lists(names).map(tuple),
    )
)
def test_a_principal_survives_the_authorizers_context(principal: Principal) -> None:
    context = principal.to_context()
    assert all(isinstance(value, str) for value in context.values())
    seen = {**context, "principalId": "x", "integrationLatency": 1}
    assert Principal.from_context(json.loads(json.dumps(seen))) == principal


@given(st.tuples(st.none() | names, names), st.tuples(st.none() | names, names))
def test_two_users_never_share_a_key(
    one: tuple[str | None, str], other: tuple[str | None, str]
) -> None:
    assert (user_key(*one) == user_key(*other)) == (one == other)


def test_a_scope_that_the_token_lacks_is_forbidden() -> None:
    principal = Principal("alice", expires_at=100, scopes=frozenset({"ws:connect"}))
    principal.require(Scope.WS_CONNECT)
    with pytest.raises(Forbidden, match="users:read"):
        principal.require(Scope.USERS_READ)


def test_a_token_expires_after_its_leeway() -> None:
    Principal("alice", expires_at=100).require_unexpired(99.9)
    with pytest.raises(TokenExpired):
        Principal("alice", expires_at=100).require_unexpired(100)
    Principal("alice", expires_at=100, leeway=5).require_unexpired(104.9)
    with pytest.raises(TokenExpired):
        Principal("alice", expires_at=100, leeway=5).require_unexpired(105)


def test_a_name_ending_in_an_asterisk_is_a_pattern_of_groups() -> None:
    principal = Principal("alice", expires_at=100, groups=("team", "room-*"))
    assert principal.own_groups == {"team"}
    assert all(principal.may_join(group) for group in ("team", "room-", "room-1"))
    assert not any(principal.may_join(group) for group in ("teams", "room", "other"))


@given(st.none() | names, names)
def test_a_user_key_can_be_split_again(tenant: str | None, user_id: str) -> None:
    assert split_user_key(user_key(tenant, user_id)) == (tenant, user_id)
