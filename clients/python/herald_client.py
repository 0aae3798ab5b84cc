"""A client of Herald on asyncio and `websockets`: keeps one WebSocket connected.

    async with Herald("wss://…", token=fetch_token) as herald:
        report = await herald.send({"to": {"users": ["bob"]}, "data": {"text": "Hi"}})
        async for message in herald:
            print(message["from"], message["data"])

When the connection breaks, the client reconnects, with growing, random pauses, and gets the
messages that it missed. It pings after silence, so that API Gateway doesn't close the connection as
idle, and sends a heartbeat an hour, since Herald doesn't see pings. It sends a new token before the
old one expires, and it drops messages that it has seen.
"""

import asyncio
import contextlib
import inspect
import itertools
import json
import logging
import random
import re
import time
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

SUBPROTOCOL = "herald.v1"
PERMANENT = frozenset({400, 401, 403, 404})
"""Statuses of a handshake that would be the same for another try with the same token."""

JWT = re.compile(r"[\w.-]+", re.ASCII)  # characters that a subprotocol can carry
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # of ULIDs

logger = logging.getLogger("herald_client")

Message = dict[str, Any]
Token = str | Callable[[], str | Awaitable[str]]
"""A JWT, or a function that returns one; it is called for each connection, and before expiry."""


class HeraldError(Exception):
    """A refusal, or a missing answer; `code` is stable, such as `rate_limited`."""

    def __init__(self, code: str, message: str, details: Message | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.details = details or {}
        """The whole error frame, which may have `retryAfterMs`."""

    @property
    def passes(self) -> bool:
        """True if the request may succeed later, or may have succeeded without an answer."""
        return self.code in ("disconnected", "timeout") or "retryAfterMs" in self.details


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Durations in seconds."""

    ping_every: float = 570.0
    """The silence in both directions after which the client pings. API Gateway closes a connection
    that is idle for ten minutes."""
    heartbeat_every: float = 3600.0
    """The longest time without a frame other than a ping, which API Gateway answers itself."""
    timeout: float = 10.0
    """The longest wait for an answer, and for a connection."""
    first_pause: float = 0.5
    """The longest pause before the first attempt to reconnect; it doubles each time."""
    longest_pause: float = 30.0
    """The longest pause before any attempt."""
    refresh_before: float = 60.0
    """The seconds before the token's expiry at which the client fetches a new one."""
    remembered: int = 10_000
    """The number of message ids that are kept, to recognize duplicates."""


class Herald:
    """A connection that is kept from `connect` to `close`. Iterate over it to receive messages."""

    def __init__(self, url: str, token: Token, options: Options | None = None) -> None:
        """Prepare a client. `url` is the address of the WebSocket API, without a token."""
        self.notices: asyncio.Queue[Message] = asyncio.Queue()
        """Notices about the connection, such as `connection_removed`."""
        self._url = url
        self._token = token
        self._options = options or Options()
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._socket: ClientConnection | None = None
        self._opened = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._pending: dict[str, asyncio.Future[Message]] = {}
        self._refs = itertools.count(1)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.gaps = 0
        """The number of times that messages may be lost, since the history no longer had them."""
        self._groups: dict[str, None] = {}
        # Resume from here: the last message delivered, or a time up to which all were.
        self._after = ""
        self._held: list[Message] | None = None  # messages that arrive while it resumes
        self._clock_offset: float | None = None  # the server's clock minus the monotonic one, s
        # On the monotonic clock: when the last frame arrived, when the last one was sent (except
        # heartbeats), and when the last one that a function sees was sent (all but pings).
        self._last_frame = self._last_sent = self._last_request = 0.0

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:  # `__aexit__` isn't called then
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield each message once, in the order of arrival, until the client is closed.

        Raises HeraldError if the connection is refused permanently.
        """
        while (message := await self._messages.get()) is not None:
            yield message
        self._messages.put_nowait(None)  # so that the next iteration ends, too
        if self._keeper is not None and self._keeper.done() and not self._keeper.cancelled():
            self._keeper.result()

    @property
    def connected(self) -> bool:
        """True while the client is connected."""
        return self._socket is not None

    async def connect(self) -> None:
        """Connect, and stay connected. Raises HeraldError if it is refused permanently."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._stay_connected())
            self._keeper.add_done_callback(lambda _: self._messages.put_nowait(None))
        opened = asyncio.create_task(self._opened.wait())
        try:
            await asyncio.wait({opened, self._keeper}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            opened.cancel()
        if self._keeper.done():
            self._keeper.result()

    async def close(self) -> None:
        """Disconnect, and don't reconnect. Pending requests raise HeraldError."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError, HeraldError):
                await self._keeper

    async def send(self, message: Message) -> Message:
        """Send `{"to", "data", "type", "encrypt", "store"}`, as in `POST /messages`.

        Returns the report. Raises HeraldError; with the code `disconnected` or `timeout` the
        message may have been sent or not.
        """
        report = await self._ask({**message, "action": "send"})
        return {name: value for name, value in report.items() if name not in ("type", "ref")}

    async def join(self, group: str) -> None:
        """Join a group that the token allows, now and after each reconnect. Raises HeraldError."""
        self._groups[group] = None
        try:
            await self._ask({"action": "join", "group": group})
        except HeraldError as error:
            if not error.passes:
                self._groups.pop(group, None)
            raise

    async def leave(self, group: str) -> None:
        """Leave a group. Raises HeraldError."""
        self._groups.pop(group, None)
        await self._ask({"action": "leave", "group": group})

    async def ping(self) -> float:
        """Return the round-trip time in seconds. Raises HeraldError."""
        began = time.monotonic()
        await self._ask({"action": "ping"})
        return time.monotonic() - began

    # --- The connection

    async def _stay_connected(self) -> None:
        """Connect again whenever the connection ends. Raises HeraldError if that can't succeed."""
        failures = 0
        while True:
            try:
                token = await self._fetch_token()
                async with connect(
                    self._url,
                    subprotocols=[Subprotocol(SUBPROTOCOL), Subprotocol(f"bearer.{token}")],
                    open_timeout=self._options.timeout,
                    close_timeout=1,
                    ping_interval=None,  # control frames don't count as activity for API Gateway
                    max_size=None,
                ) as socket:
                    failures = 0
                    await self._use(socket, token)
            except InvalidStatus as refused:
                status = refused.response.status_code
                if status in PERMANENT and isinstance(self._token, str):
                    raise HeraldError("refused", f"the handshake was answered {status}") from None
                logger.warning("handshake refused with status %d", status)
            except (HeraldError, OSError, TimeoutError, WebSocketException) as error:
                logger.warning("connection failed: %s", error or type(error).__name__)
            # Full jitter, so that clients that were cut off together don't reconnect together:
            # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
            longest = min(self._options.longest_pause, self._options.first_pause * 2**failures)
            failures = min(failures + 1, 32)
            await asyncio.sleep(random.uniform(0, longest))

    async def _use(self, socket: ClientConnection, token: str) -> None:
        """Receive frames until the connection ends."""
        self._socket = socket
        self._last_sent = self._last_request = time.monotonic()
        self._opened.set()
        begin = self._begin() if self._held is None else self._resume(socket)
        jobs = (begin, self._stay_active(socket), self._renew(token))
        tasks = [asyncio.create_task(job) for job in jobs]
        try:
            async for text in socket:
                self._receive(str(text))
            self._last_frame = time.monotonic()  # closed cleanly: everything sent has arrived
        finally:
            # Until now every message has arrived. Held messages will come again.
            if self._held is None and self._clock_offset is not None:
                self._after = max(self._after, earliest(self._last_frame + self._clock_offset))
            self._held = []
            self._socket = None
            self._opened.clear()
            for task in tasks:
                task.cancel()
            for answer in [one for one in self._pending.values() if not one.done()]:
                answer.set_exception(HeraldError("disconnected", "the connection was lost"))

    async def _begin(self) -> None:
        """Learn the server's clock. A first connection has missed nothing yet."""
        with contextlib.suppress(HeraldError):
            await self.ping()
            if self._clock_offset is None:  # the pong has no time; a function's answer has
                await self._ask({"action": "heartbeat"})

    async def _resume(self, socket: ClientConnection) -> None:
        """Fetch the missed messages, then deliver those that arrived meanwhile."""
        complete = False
        while True:
            try:
                for group in list(self._groups):
                    await self._join_again(group)
                if self._after:
                    frame = {"action": "resume", "after": self._after}
                    complete = (await self._ask(frame, 3 * self._options.timeout))["complete"]
            except HeraldError as error:
                if error.code in ("timeout", "disconnected"):
                    socket.transport.abort()  # the next connection resumes
                    return
                if (wait := error.details.get("retryAfterMs")) is not None:
                    await asyncio.sleep(wait / 1000)
                    continue
                logger.warning("missed messages can't be fetched: %s", error)
            break
        self.gaps += not complete
        held, self._held = self._held or [], None
        for message in sorted(held, key=lambda message: str(message["id"])):
            self._deliver(message)

    async def _join_again(self, group: str) -> None:
        """Join a group, or give it up if it is refused. Raises HeraldError if that may change."""
        try:
            await self.join(group)
        except HeraldError as error:
            if error.passes:
                raise
            logger.warning("no longer a member of group %s: %s", group, error)

    async def _stay_active(self, socket: ClientConnection) -> None:
        """Ping after silence, send heartbeats, and abandon a connection without an answer.

        A heartbeat that will soon be due replaces a ping. If it isn't answered, that may be a
        function's fault, so a ping follows, which API Gateway answers.
        """
        while True:
            now = time.monotonic()
            idle = now - self._last_request
            silence = now - max(self._last_sent, self._last_frame)
            left = min(self._options.ping_every - silence, self._options.heartbeat_every - idle)
            if left > 0:
                await asyncio.sleep(left)
                continue
            action = "heartbeat" if idle >= 0.95 * self._options.heartbeat_every else "ping"
            try:
                await self._ask({"action": action})
            except HeraldError as error:  # any frame that arrived meanwhile is a sign of life, too
                if error.code == "timeout" and action == "ping" and self._last_frame < now:
                    logger.warning("no pong: reconnecting")
                    socket.transport.abort()
                    return

    async def _renew(self, token: str) -> None:
        """Send a new token before `token` expires, and so on."""
        while (expires := expiry(token)) is not None:
            left = expires - time.time()
            # For a token with a shorter life, when two thirds of it are over.
            await asyncio.sleep(max(left - self._options.refresh_before, left * 2 / 3))
            try:
                newer = await self._fetch_token()
                if newer == token:
                    return
                await self._ask({"action": "refresh", "token": newer})
            except HeraldError as error:  # the connection ends with its token; the next fetches one
                logger.warning("token not renewed: %s", error)
                return
            token = newer

    async def _fetch_token(self) -> str:
        """Return a token. Raises HeraldError if the application's function fails.

        It may fail in any way, for example while the network is down; the client tries again.
        """
        if isinstance(self._token, str):
            return self._token
        try:
            found = self._token()
            token = await found if inspect.isawaitable(found) else found
            if not JWT.fullmatch(token):
                raise ValueError("it is not a JWT")
            return token
        except Exception as error:
            raise HeraldError("no_token", f"no token: {error or type(error).__name__}") from error

    # --- Frames

    async def _ask(self, frame: Message, seconds: float | None = None) -> Message:
        """Send a frame, and return its answer. Raises HeraldError."""
        if self._socket is None:
            raise HeraldError("disconnected", "not connected")
        ref = f"{frame['action']}-{next(self._refs)}"
        now = time.monotonic()
        self._last_sent = self._last_sent if frame["action"] == "heartbeat" else now
        self._last_request = self._last_request if frame["action"] == "ping" else now
        answer = self._pending[ref] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds or self._options.timeout):
                await self._socket.send(json.dumps({**frame, "ref": ref}))
                return await answer  # type: ignore[no-any-return]
        except TimeoutError:
            raise HeraldError("timeout", f"no answer to {frame['action']}") from None
        except ConnectionClosed:
            raise HeraldError("disconnected", "the connection was lost") from None
        finally:
            del self._pending[ref]

    def _receive(self, text: str) -> None:
        self._last_frame = time.monotonic()
        try:
            frame = dict(json.loads(text))
        except (TypeError, ValueError):
            logger.warning("not a frame: %.99s", text)
            return
        match frame.get("type"):
            case "messages":
                for message in frame["messages"]:
                    self._deliver(message)
            case "notice":
                self.notices.put_nowait(frame)
            case "error" | None:  # API Gateway's own errors have no type, and no ref
                code, message = frame.get("code", "internal"), frame.get("message", text)
                self._answer(frame, HeraldError(code, message, frame))
            case _:
                self._answer(frame)

    def _answer(self, frame: Message, error: HeraldError | None = None) -> None:
        """Hand an answer to the request that it is for; API Gateway's pongs have no ref."""
        waiting = {ref: one for ref, one in self._pending.items() if not one.done()}
        pings = (one for one in waiting if frame.get("type") == "pong" and one[:5] == "ping-")
        ref = frame.get("ref") or next(pings, "")
        if (answer := waiting.get(ref)) is not None:
            if ref[:5] in ("ping-", "heart") and str(frame.get("timestamp")).isdecimal():
                self._clock_offset = int(frame["timestamp"]) / 1000 - self._last_frame
            answer.set_result(frame) if error is None else answer.set_exception(error)
        elif error is not None:
            logger.warning("unexpected error frame: %s", error)

    def _deliver(self, message: Message) -> None:
        if self._held is not None:
            self._held.append(message)
            return
        self._after = max(self._after, message["id"])
        if message["id"] in self._seen:
            return
        self._seen[message["id"]] = None
        if len(self._seen) > self._options.remembered:
            self._seen.popitem(last=False)
        self._messages.put_nowait(message)


def earliest(moment: float) -> str:
    """Return the first id (a ULID) of a time, in epoch seconds."""
    milliseconds = int(moment * 1000)
    return "".join(ALPHABET[milliseconds >> shift & 31] for shift in range(45, -1, -5)) + "0" * 16


def expiry(token: str) -> float | None:
    """Return when a token expires, in epoch seconds, or None if it doesn't say."""
    try:
        # Padding beyond what is needed is ignored.
        payload = urlsafe_b64decode(token.split(".")[1] + "==")
        return float(json.loads(payload)["exp"])
    except (IndexError, KeyError, TypeError, ValueError):
        return None
