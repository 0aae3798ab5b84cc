"""Our signatures beside botocore's."""

import datetime
import hashlib
from unittest import mock
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.delivery.sigv4 import SERVICE, RequestSigner, SignerFactory
from chalicelib.runtime.aws import Credentials

visible = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)
real_ids = st.from_regex(r"[A-Za-z0-9_-]{15}=", fullmatch=True)
endpoints = st.builds(
    "https://{}{}".format,
    st.sampled_from(["abc123.execute-api.eu-west-1.amazonaws.com", "ws.example.com:8443"]),
    st.sampled_from(["", "/prod", "/my-stage_1", "/a/b", "/with%20space", "/~x"]),
)


def authorization(
    endpoint: str,
    region: str,
    credentials: Credentials,
    second: int,
    method: str,
    connection: str,
    body: bytes,
) -> tuple[dict[str, str], str]:
    """Return our headers, and botocore's Authorization header for the same request."""
    signer = RequestSigner(
        endpoint, region=region, credentials=lambda: credentials, now=lambda: second + 0.9
    )
    request = signer.request(method, connection, body, hashlib.sha256(body).hexdigest())
    head, _, sent = request.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    sent_method, path, version = line.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    assert (sent_method, version, sent) == (method, "HTTP/1.1", body)
    assert headers["content-length"] == str(len(body))

    moment = datetime.datetime.fromtimestamp(second, datetime.UTC).replace(tzinfo=None)
    theirs = AWSRequest(method, f"https://{urlsplit(endpoint).netloc}{path}", data=body)
    signed_by = BotoCredentials(credentials.access_key, credentials.secret_key, credentials.token)
    with mock.patch("botocore.auth.get_current_datetime", return_value=moment):
        SigV4Auth(signed_by, SERVICE, region).add_auth(theirs)
    return headers, theirs.headers["Authorization"]


@given(
    endpoint=endpoints,
    region=st.sampled_from(["us-east-1", "eu-west-1", "ap-southeast-4", "us-gov-west-1"]),
    credentials=st.builds(Credentials, visible, visible, st.none() | visible),
    second=st.integers(0, 4_000_000_000),
    method=st.sampled_from(["POST", "GET", "DELETE"]),
    connection=real_ids | st.sampled_from([".", ".."]) | st.text(min_size=1, max_size=40),
    body=st.binary(max_size=300),
)
def test_signatures_equal_botocores(
    endpoint: str,
    region: str,
    credentials: Credentials,
    second: int,
    method: str,
    connection: str,
    body: bytes,
) -> None:
    if any("\ud800" <= character <= "\udfff" for character in connection):
        return
    headers, theirs = authorization(endpoint, region, credentials, second, method, connection, body)
    assert headers["authorization"] == theirs


def test_a_long_lived_signer_signs_like_a_new_one() -> None:
    """Over seconds, days, frames and changes of credentials."""
    now, key = 0.0, ""

    def signer() -> RequestSigner:
        return RequestSigner(
            "https://x.example.com/prod",
            region="eu-west-1",
            credentials=lambda: Credentials(f"AK{key}", f"secret{key}", f"token{key}"),
            now=lambda: now,
        )

    long_lived = signer()
    for moment, current in [(1e9, "1"), (1e9 + 1, "1"), (1e9 + 2, "2"), (1e9 + 86_400, "2")]:
        now, key = moment, current
        for body in (b"a frame", b"another", b"a frame"):
            digest = hashlib.sha256(body).hexdigest()
            for method in ("POST", "GET"):
                request = long_lived.request(method, "c=", body, digest)
                assert request == signer().request(method, "c=", body, digest)


def test_the_region_is_that_of_the_host_name_or_the_default() -> None:
    signers = SignerFactory(
        lambda: Credentials("AK", "secret"), region="us-east-1", now=lambda: 1e9
    )
    for endpoint, region in {
        "https://abc.execute-api.eu-west-1.amazonaws.com/prod": "eu-west-1",
        "https://abc.execute-api.cn-north-1.amazonaws.com.cn/prod": "cn-north-1",
        "https://ws.example.com": "us-east-1",
    }.items():
        request = signers.signer(endpoint).request("POST", "c=", b"", "")
        assert f"/{region}/execute-api/aws4_request".encode() in request
