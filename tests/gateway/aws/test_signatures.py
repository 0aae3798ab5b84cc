"""The check of signatures, against the SDK's own signer."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as SdkCredentials
from hypothesis import given
from hypothesis import strategies as st

from gateway.aws.signatures import (
    Credentials,
    SignatureError,
    SignatureVerifier,
    random_credentials,
)

OWN = Credentials("LOCALKEY", "the-secret")
HOST = "127.0.0.1:8000"
MINUTE = 60


class Sent(NamedTuple):
    """A request as it travels."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    def scope(self) -> dict[str, Any]:
        """Return it as an ASGI server does."""
        return {
            "method": self.method,
            "raw_path": self.path.encode(),
            "query_string": self.query.encode(),
            "headers": [
                (name.lower().encode(), value.encode()) for name, value in self.headers.items()
            ],
        }


def signed(
    method: str = "POST",
    path: str = "/ws/%40connections/AAAAAAAAAAAAAAA%3D",
    query: str = "",
    headers: Mapping[str, str] | None = None,
    body: bytes = b'{"a": 1}',
    *,
    credentials: Credentials = OWN,
    service: str = "execute-api",
    region: str = "us-east-1",
) -> Sent:
    """Return a request that the SDK has signed."""
    url = f"http://{HOST}{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method, url, {"Host": HOST, **(headers or {})}, body)
    SigV4Auth(SdkCredentials(*credentials), service, region).add_auth(request)
    parts = urlsplit(url)
    return Sent(method, parts.path, parts.query, dict(request.headers.items()), body)


def check(sent: Sent, **options: Any) -> None:
    """Verify a request. Raises SignatureError."""
    verifier = SignatureVerifier(OWN, **options)
    verifier.verify(verifier.authorization(sent.scope()), sent.scope(), sent.body)


def refusal(sent: Sent, **options: Any) -> tuple[str, str]:
    """Return the type and the text of the error of a request, which must be refused."""
    with pytest.raises(SignatureError) as refused:
        check(sent, **options)
    return refused.value.error_type, str(refused.value)


MISMATCH = (
    "InvalidSignatureException",
    "The request signature we calculated does not match the signature you provided. Check your AWS"
    " Secret Access Key and signing method. Consult the service documentation for details.",
)
unreserved = st.text("abcXYZ019-_.~", max_size=5)
segments = st.lists(
    st.one_of(unreserved, st.sampled_from(["%40c", "@c", "a%3D", "a:b", "(", "..", "."]))
)
parameters = st.lists(st.tuples(unreserved, unreserved, st.sampled_from(["=", ""])), max_size=4)
values = st.text("aZ0 ,;=/à", min_size=1, max_size=12)


@given(
    method=st.sampled_from(["POST", "GET", "DELETE", "PUT"]),
    path=segments.map(lambda found: "/" + "/".join(found)),
    query=parameters.map(
        lambda found: "&".join(
            name + equals + value * bool(equals) for name, value, equals in found
        )
    ),
    headers=st.dictionaries(
        st.sampled_from(["X-Amz-Target", "Content-Type", "X-Amz-A", "B"]), values
    ),
    body=st.binary(max_size=100),
    service=st.sampled_from(["execute-api", "dynamodb", "sqs"]),
    region=st.sampled_from(["us-east-1", "eu-central-1"]),
)
def test_what_the_sdk_signs_is_accepted(**request: Any) -> None:
    check(signed(**request))


@pytest.mark.parametrize(
    "change",
    [
        lambda sent: sent._replace(method="DELETE"),
        lambda sent: sent._replace(path=sent.path.replace("AAA", "AAB", 1)),
        lambda sent: sent._replace(query="a=1"),
        lambda sent: sent._replace(body=sent.body + b" "),
        lambda sent: sent._replace(headers={**sent.headers, "Host": "evil.example"}),
        lambda sent: sent._replace(headers={**sent.headers, "X-Amz-Target": "Delete"}),
        lambda sent: sent._replace(
            headers={
                **sent.headers,
                "Authorization": sent.headers["Authorization"][:-64] + "0" * 64,
            }
        ),
    ],
)
def test_a_request_that_was_changed_is_refused(change: Callable[[Sent], Sent]) -> None:
    request = signed(headers={"X-Amz-Target": "Scan"})
    check(request)
    assert refusal(change(request)) == MISMATCH


def test_a_hash_that_is_not_the_bodys_is_refused_as_such() -> None:
    for claimed in ("UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "0" * 64):
        assert refusal(signed(headers={"X-Amz-Content-SHA256": claimed})) == (
            "InvalidSignatureException",
            "'x-amz-content-sha256' must be the SHA-256 of the body.",
        )


def test_a_presigned_url_is_refused_as_such() -> None:
    request = AWSRequest("GET", f"http://{HOST}/?a=1")
    SigV4QueryAuth(SdkCredentials(*OWN), "sqs", "us-east-1").add_auth(request)
    query = urlsplit(str(request.url)).query
    assert refusal(Sent("GET", "/", query, {"Host": HOST}, b"")) == (
        "MissingAuthenticationTokenException",
        "Missing Authentication Token. The local gateway accepts no presigned URLs.",
    )


def test_temporary_credentials_sign_their_token() -> None:
    request = signed(headers={"X-Amz-Security-Token": "a/token=="})
    check(request)
    request.headers["X-Amz-Security-Token"] = "another"
    assert refusal(request) == MISMATCH


def test_another_secret_key_is_refused() -> None:
    assert refusal(signed(credentials=Credentials("LOCALKEY", "guessed"))) == MISMATCH


def test_another_access_key_is_refused() -> None:
    assert refusal(signed(credentials=Credentials("OTHER", "the-secret"))) == (
        "UnrecognizedClientException",
        "The security token included in the request is invalid.",
    )


def test_a_request_without_a_signature_is_refused() -> None:
    for headers in ({"Host": HOST}, {"Host": HOST, "Authorization": ""}):
        assert refusal(Sent("GET", "/", "", headers, b"")) == (
            "MissingAuthenticationTokenException",
            "Missing Authentication Token",
        )


NO_DATE = "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."
NO_PARAMETERS = " ".join(
    f"Authorization header requires '{name}' parameter."
    for name in ("Credential", "Signature", "SignedHeaders")
)


@pytest.mark.parametrize(
    ("authorization", "date", "text"),
    [
        ("Bearer secret-token", "", f"{NO_PARAMETERS} {NO_DATE}"),
        (
            "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=0",
            "20260101T000000Z",
            "Credential must have exactly 5 slash-delimited elements, e.g."
            " keyid/date/region/service/term.",
        ),
    ],
)
def test_another_authorization_is_refused_without_repeating_it(
    authorization: str, date: str, text: str
) -> None:
    headers = {"Host": HOST, "Authorization": authorization, "X-Amz-Date": date}
    assert refusal(Sent("GET", "/", "", headers, b"")) == ("IncompleteSignatureException", text)


def test_a_signature_for_another_service_is_refused() -> None:
    check(signed(service="execute-api"), service="execute-api")
    assert refusal(signed(service="dynamodb"), service="execute-api") == (
        "InvalidSignatureException",
        "Credential should be scoped to correct service: 'execute-api'.",
    )


@pytest.mark.parametrize(("minutes", "reason"), [(15.1, "expired"), (-15.1, "not yet current")])
def test_a_signature_is_valid_for_fifteen_minutes_either_way(minutes: float, reason: str) -> None:
    request = signed()
    edge = time.time() + minutes * MINUTE
    assert refusal(request, now=lambda: edge)[1].startswith(f"Signature {reason}: ")
    check(request, now=lambda: edge - minutes * MINUTE * 0.01)


@pytest.mark.parametrize("date", ["yesterday", "20269901T000000Z", "20200101T000000Z"])
def test_a_date_that_is_not_the_signatures_is_refused(date: str) -> None:
    request = signed()
    request.headers["X-Amz-Date"] = date
    assert refusal(request)[0] == "InvalidSignatureException"


@pytest.mark.parametrize("name", ["host", "x-amz-target"])
def test_headers_that_give_a_request_its_meaning_must_be_signed(name: str) -> None:
    request = signed(headers={"X-Amz-Target": "Scan"})
    authorization = request.headers["Authorization"]
    names = authorization.partition("SignedHeaders=")[2].partition(",")[0]
    fewer = ";".join(part for part in names.split(";") if part != name)
    request.headers["Authorization"] = authorization.replace(names, fewer)
    text = f"'{name}' must be a 'SignedHeader' in the AWS Authorization."
    assert refusal(request) == ("InvalidSignatureException", text)


def test_a_request_without_a_host_is_refused() -> None:
    request = signed()
    del request.headers["Host"]
    assert "'host' must be" in refusal(request)[1]


def test_random_credentials_differ_and_their_secret_is_not_shown() -> None:
    first, second = random_credentials(), random_credentials()
    assert first.access_key != second.access_key
    assert first.secret_key != second.secret_key
    assert len(first.access_key) == 20
    assert len(first.secret_key) == 40
    assert first.secret_key not in repr(first)
