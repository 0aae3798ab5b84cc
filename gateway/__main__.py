"""`python -m gateway run | demo | token`: what the Makefile's commands do."""

import signal

if __name__ == "__main__":
    # Until `until_interrupted` handles Ctrl-C, it ends this process without a traceback: there is
    # nothing to clean up yet, and the imports take a second.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import errno
import os
import sys

from gateway.configuration import MAX_PORT, Configuration, ConfigurationError, configuration
from gateway.demo import demo
from gateway.first_message import curl
from gateway.functions.environments import FunctionError
from gateway.log import log_to_terminal, print_whole_lines
from gateway.machine import interrupts
from gateway.machine.registry import registered
from gateway.server import Running, gateway
from gateway.tokens import DEFAULT_SCOPE, token


async def run(configured: Configuration) -> int:
    """Serve until this is cancelled; the exit status of a stop that was asked for."""
    log_to_terminal()
    async with gateway(configured) as running:
        with registered(running.port, running.variables):
            print(_welcome(running, configured))
            await interrupts.interrupted()
        print("\nStopping.")
    return 0


def _welcome(running: Running, configured: Configuration) -> str:
    try:
        first_steps = _first_steps(running, configured)
    except ConfigurationError:
        first_steps = "Tokens come from your identity provider: HERALD_JWT_SECRET is empty."
    return f"""
Herald is running. It reloads when code changes; Ctrl-C stops it.

  REST          {running.http}
  WebSocket     {running.websocket}
  @connections  {running.management}/@connections/{{connectionId}}
  Console       {running.http}/console

{first_steps}"""


def _first_steps(running: Running, configured: Configuration) -> str:
    alice = token(configured.environment, "alice")
    bob = token(configured.environment, "bob")
    return f"""Tokens, for a day (make token USER=carol SCOPE="ws:connect" makes another):

  alice  {alice}

  bob    {bob}

Connect a WebSocket client as bob:

  {running.websocket}?token={bob}

and send him a message as alice:

{curl(running.http, alice)}"""


def _print_token(configured: Configuration, arguments: argparse.Namespace) -> None:
    if not arguments.user.strip():
        raise ConfigurationError(
            'the user is empty. Usage: make token USER=alice [SCOPE="messages:send"]'
        )
    print(token(configured.environment, arguments.user, arguments.scope))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="serve on HOST and PORT")
    commands.add_parser("demo", help="send one message between real clients")
    token_parser = commands.add_parser("token", help="print a token")
    token_parser.add_argument("user")
    token_parser.add_argument("scope", nargs="?", default=DEFAULT_SCOPE)
    arguments = parser.parse_args()
    print_whole_lines()
    try:
        configured = configuration(os.environ)
        match arguments.command:
            case "run":
                return asyncio.run(interrupts.until_interrupted(run(configured)))
            case "demo":
                return asyncio.run(interrupts.until_interrupted(demo(configured)))
            case "token":
                _print_token(configured, arguments)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    except FunctionError as error:
        # The cause first; a wrong setting needs no stack.
        told = (
            str(error) if error.error_type == "SettingsError" else f"{error.cause}\n{error.trace}"
        )
        print(told, file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        other = configured.port + (1 if configured.port < MAX_PORT else -1)
        print(f"PORT {configured.port} is taken; try PORT={other}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
