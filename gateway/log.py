"""One line for each event, for the person at the terminal."""

import logging
import sys

from gateway.events import WebSocketContext

logger = logging.getLogger("gateway")


def log_to_terminal() -> None:
    """Show the lines; nothing is shown where nobody asked for it."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def log_event(kind: str, context: WebSocketContext, what: str) -> None:
    """Such as `12:00:01  CONNECT     BFaT_fALIAMCKug=  alice  101`."""
    principal = printable((context.authorizer or {}).get("principalId", "-"))
    log_line(kind, f"{context.connection_id}  {principal}  {what}")


def printable(text: str) -> str:
    """Text of a client's on one line, without what a terminal would obey."""
    return text if text.isprintable() else ascii(text)[1:-1]


def log_line(kind: str, what: str) -> None:
    logger.info("%-10s  %s", kind, what)
