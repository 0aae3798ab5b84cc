"""A client of Herald: one WebSocket that stays, on `websockets` and asyncio.

    async with Herald("wss://…", token=fetch_token) as herald:
        report = await herald.send({"to": {"users": ["bob"]}, "data": {"text": "Hi"}})
        async for message in herald:
            print(message["from"], message["data"])

It connects again when the connection breaks, with growing, random pauses, and gets what it missed;
keeps it from being idle; brings a newer token before the old one expires; and drops a message that
it has seen.
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
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

SUBPROTOCOL = "herald.v1"
FOR_GOOD = frozenset({400, 401, 403, 404})
"""Statuses of a handshake that another try with the same token will not change."""

JWT = re.compile(r"[\w.-]+", re.ASCII)  # what a subprotocol can carry of what may be one
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # of ULIDs

logger = logging.getLogger("herald_client")

Message = dict[str, Any]
Token = str | Callable[[], str | Awaitable[str]]
"""A JWT, or what returns one: it is called for each connection, and before the token expires."""


class HeraldError(Exception):
    """An answer that says no, or none at all; `code` is stable, such as `rate_limited`."""

    def __init__(self, code: str, message: str, details: Message | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.details = details or {}
        """The whole error frame, such as with `retryAfterMs`."""

    @property
    def passes(self) -> bool:
        """Whether the same may succeed later, or has without our hearing of it."""
        return self.code in ("disconnected", "timeout") or "retryAfterMs" in self.details


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Durations in seconds."""

    ping_every: float = 480.0
    """API Gateway closes what is idle for ten minutes."""
    timeout: float = 10.0
    """For an answer, and for the connection."""
    first_pause: float = 0.5
    longest_pause: float = 30.0
    """The longest before the first try to connect again, and before any."""
    refresh_before: float = 60.0
    """How long before its token expires it asks for a newer one."""
    remembered: int = 10_000
    """Ids of messages."""


class Herald:
    """A connection, kept up from `connect` to `close`; iterate over it for the messages."""

    def __init__(self, url: str, token: Token, options: Options | None = None) -> None:
        """`url` is the WebSocket API's, without a token."""
        self.notices: asyncio.Queue[Message] = asyncio.Queue()
        """What Herald says of the connection, such as `connection_removed`."""
        self._url = url
        self._token = token
        self._options = options or Options()
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._socket: ClientConnection | None = None
        self._opened = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._asked: dict[str, asyncio.Future[Message]] = {}
        self._refs = itertools.count(1)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.gaps = 0
        """How often something may be lost, since what was missed was not kept any more."""
        self._groups: dict[str, None] = {}
        self._after = ""  # the last message that came in its turn, or a moment until which all have
        self._held: list[Message] | None = None  # what comes while it resumes, for its turn
        self._ahead: float | None = None  # seconds from the monotonic clock to the server's
        self._heard = 0.0

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:  # no `__aexit__` comes
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Each message once, in the order in which they come; ends with the connection."""
        while (message := await self._messages.get()) is not None:
            yield message
        self._messages.put_nowait(None)  # for the next one who asks
        if self._keeping is not None and self._keeping.done() and not self._keeping.cancelled():
            self._keeping.result()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._socket is not None

    async def connect(self) -> None:
        """Connect, and stay connected. Raises HeraldError if it is refused for good."""
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep())
            self._keeping.add_done_callback(lambda _: self._messages.put_nowait(None))
        opened = asyncio.create_task(self._opened.wait())
        try:
            await asyncio.wait({opened, self._keeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            opened.cancel()
        if self._keeping.done():
            self._keeping.result()

    async def close(self) -> None:
        """Disconnect for good; what waits for an answer gets a HeraldError."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError, HeraldError):
                await self._keeping

    async def send(self, message: Message) -> Message:
        """Send `{"to", "data", "type", "encrypt", "store"}`, as in `POST /messages`; the report.

        Raises HeraldError; `disconnected` and `timeout` leave open whether it was sent.
        """
        report = await self._ask({**message, "action": "send"})
        return {name: value for name, value in report.items() if name not in ("type", "ref")}

    async def join(self, group: str) -> None:
        """Join a group that the token allows, and join it in each connection to come. Raises
        HeraldError."""
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
        """How long an answer takes, in seconds. Raises HeraldError."""
        began = time.monotonic()
        pong = await self._ask({"action": "ping"})
        ended = time.monotonic()
        self._ahead = pong["timestamp"] / 1000 - ended
        return ended - began

    # --- The connection

    async def _keep(self) -> None:
        """Be connected, again and again. Raises HeraldError when that has no prospect."""
        failures = 0
        while True:
            try:
                token = await self._fetch_token()
                async with connect(
                    self._url,
                    subprotocols=[Subprotocol(SUBPROTOCOL), Subprotocol(f"bearer.{token}")],
                    open_timeout=self._options.timeout,
                    close_timeout=1,
                    ping_interval=None,  # API Gateway takes no control frame for activity
                    max_size=None,
                ) as socket:
                    failures = 0
                    await self._use(socket, token)
            except InvalidStatus as refused:
                status = refused.response.status_code
                if status in FOR_GOOD and isinstance(self._token, str):
                    raise HeraldError("refused", f"the handshake was answered {status}") from None
                logger.warning("the handshake was answered %d", status)
            except (HeraldError, OSError, TimeoutError, WebSocketException) as error:
                logger.warning("not connected: %s", error or type(error).__name__)
            # Full jitter, so that those who were cut off together don't come back together:
            # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
            longest = min(self._options.longest_pause, self._options.first_pause * 2**failures)
            failures = min(failures + 1, 32)
            await asyncio.sleep(random.uniform(0, longest))

    async def _use(self, socket: ClientConnection, token: str) -> None:
        """Receive until the connection ends."""
        self._socket = socket
        self._opened.set()
        begin = self._begin() if self._held is None else self._resume(socket)
        works = (begin, self._stay_active(socket), self._renew(token))
        others = [asyncio.create_task(work) for work in works]
        try:
            async for text in socket:
                self._receive(str(text))
            self._heard = time.monotonic()  # it was closed, and all before that has come
        finally:
            self._note_end()
            self._socket = None
            self._opened.clear()
            for task in others:
                task.cancel()
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(HeraldError("disconnected", "the connection is lost"))

    async def _begin(self) -> None:
        """The first connection misses nothing; from here on, something might be."""
        with contextlib.suppress(HeraldError):
            await self.ping()  # for the clock

    def _note_end(self) -> None:
        """Note until when all has come. What had not had its turn will come again."""
        if self._held is None and self._ahead is not None:
            self._after = max(self._after, earliest(self._heard + self._ahead))
        self._held = []

    async def _resume(self, socket: ClientConnection) -> None:
        """Ask for what was missed, and let what has come meanwhile have its turn after it."""
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
                    socket.transport.abort()  # the next connection asks again
                    return
                wait = error.details.get("retryAfterMs")
                if wait is not None:
                    await asyncio.sleep(wait / 1000)
                    continue
                logger.warning("what was missed can't be had: %s", error)
            break
        self.gaps += not complete
        held, self._held = self._held or [], None
        for message in sorted(held, key=lambda message: str(message["id"])):
            self._deliver(message)

    async def _join_again(self, group: str) -> None:
        """What is refused for good is left out. Raises HeraldError for what may pass."""
        try:
            await self.join(group)
        except HeraldError as error:
            if error.passes:
                raise
            logger.warning("not in the group %s any more: %s", group, error)

    async def _stay_active(self, socket: ClientConnection) -> None:
        """Ping; and give a connection up on which nothing answers."""
        while True:
            await asyncio.sleep(self._options.ping_every)
            try:
                await self.ping()
            except HeraldError as error:
                if error.code == "timeout":
                    logger.warning("no pong: connecting again")
                    socket.transport.abort()
                    return

    async def _renew(self, token: str) -> None:
        """Bring a newer token before `token` expires."""
        while (expires := expiry(token)) is not None:
            left = expires - time.time()
            # Of a token that lives shorter than that, the last third.
            await asyncio.sleep(max(left - self._options.refresh_before, left * 2 / 3))
            try:
                newer = await self._fetch_token()
                if newer == token:
                    return
                await self._ask({"action": "refresh", "token": newer})
            except HeraldError as error:  # the connection ends with its token, the next asks again
                logger.warning("the token was not renewed: %s", error)
                return
            token = newer

    async def _fetch_token(self) -> str:
        """Raises HeraldError where there is none: the application's function may fail in any way,
        such as while the network is down, and that ends no connection for good."""
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
        """Send a frame; its answer. Raises HeraldError."""
        if self._socket is None:
            raise HeraldError("disconnected", "there is no connection")
        ref = str(next(self._refs))
        answer = self._asked[ref] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds or self._options.timeout):
                await self._socket.send(json.dumps({**frame, "ref": ref}))
                return await answer  # type: ignore[no-any-return]
        except TimeoutError:
            raise HeraldError("timeout", f"no answer to {frame['action']}") from None
        except ConnectionClosed:
            raise HeraldError("disconnected", "the connection is lost") from None
        finally:
            del self._asked[ref]

    def _receive(self, text: str) -> None:
        self._heard = time.monotonic()
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
            case kind:
                answer = self._asked.get(frame.get("ref", ""))
                if kind in ("error", None):  # API Gateway's own errors have no type, and no ref
                    code, message = frame.get("code", "internal"), frame.get("message", text)
                    error = HeraldError(code, message, frame)
                    if answer is None or answer.done():
                        logger.warning("an error: %s", error)
                    else:
                        answer.set_exception(error)
                elif answer is not None and not answer.done():
                    answer.set_result(frame)

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
    """The first id (a ULID) of a moment, in epoch seconds."""
    milliseconds = int(moment * 1000)
    return "".join(ALPHABET[milliseconds >> shift & 31] for shift in range(45, -1, -5)) + "0" * 16


def expiry(token: str) -> float | None:
    """When a token expires, in epoch seconds; None if it doesn't say so."""
    try:
        payload = token.split(".")[1]
        expires = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"]
    except (IndexError, KeyError, TypeError, ValueError):
        return None
    return float(expires)
