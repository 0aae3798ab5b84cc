"""Requests that are signed as the SDK signs them, over any HTTP client."""

from collections.abc import Generator, Mapping

import httpx
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials


class Signed(httpx.Auth):
    """Signs each request with the credentials of a gateway, or with others."""

    requires_request_body = True

    def __init__(self, aws: Mapping[str, str], service: str = "execute-api") -> None:
        """Sign for `service`; `aws` are the variables that lead an SDK to the emulated AWS."""
        credentials = Credentials(aws["AWS_ACCESS_KEY_ID"], aws["AWS_SECRET_ACCESS_KEY"])
        self._auth = SigV4Auth(credentials, service, aws["AWS_REGION"])

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Implement httpx's interface."""
        names = ("host", "x-amz-target", "content-type")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        signed = AWSRequest(request.method, str(request.url), headers, request.content)
        self._auth.add_auth(signed)
        request.headers.update(dict(signed.headers.items()))
        yield request
