"""Read a request's body up to a limit."""

from starlette.requests import Request


class BodyTooLarge(Exception):
    """The body is larger than the API accepts."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the whole body. Raises BodyTooLarge as soon as it passes `max_bytes`."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLarge
    return body
