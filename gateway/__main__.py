"""`python -m gateway run | demo | token`, which the Makefile's commands start."""

import signal

if __name__ == "__main__":
    # Until `until_interrupted` handles Ctrl-C, let it end this process without a traceback:
    # the imports take a second, and there is nothing to clean up yet.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import errno
import os
import sys

from gateway.configuration import MAX_PORT, Configuration, ConfigurationError, configuration
from gateway.demo import demo
from gateway.first_message import curl
from gateway.functions.execution_environment import FunctionError
from gateway.log import log_to_terminal
from gateway.machine import interrupts
from gateway.machine.standard_streams import print_whole_lines
from gateway.registry import REGISTRY
from gateway.server import Running, gateway
from gateway.tokens import DEFAULT_SCOPE, token


async def run(configured: Configuration) -> int:
    """Serve until this is cancelled. Returns the exit status."""
    log_to_terminal()
    async with gateway(configured) as running:
        with REGISTRY.registered(running.port, running.variables):
            print(_welcome(running, configured))
            await interrupts.wait_for_interrupt()
        print("\nStopping.")
    return 0


def _welcome(running: Running, configured: Configuration) -> str:
    try:
        first_steps = _first_steps(running, configured)
    except ConfigurationError:
        first_steps = "HERALD_JWT_SECRET is empty, so tokens come from your identity provider."
    return f"""
Herald is running. It reloads when code changes; Ctrl-C stops it.

  REST          {running.http}
  WebSocket     {running.websocket}
  @connections  {running.management}/@connections/{{connectionId}}
  Console       {running.http}/console

{first_steps}"""


def _first_steps(running: Running, configured: Configuration) -> str:
    """Return tokens, a WebSocket URL and a command to paste. Raises ConfigurationError."""
    alice = token(configured.variables, "alice")
    bob = token(configured.variables, "bob")
    return f"""Tokens, valid for a day (for another: make token USER=carol SCOPE="ws:connect"):

  alice  {alice}

  bob    {bob}

Connect a WebSocket client as bob:

  {running.websocket}?token={bob}

Then send him a message as alice:

{curl(running.http, alice)}"""


def _print_token(configured: Configuration, arguments: argparse.Namespace) -> None:
    if not arguments.user.strip():
        raise ConfigurationError(
            'The user is empty. Usage: make token USER=alice [SCOPE="messages:send"]'
        )
    print(token(configured.variables, arguments.user, arguments.scope))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gateway")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="serve on HOST and PORT")
    commands.add_parser("demo", help="send one message between real clients")
    token_parser = commands.add_parser("token", help="print a token")
    token_parser.add_argument("user")
    token_parser.add_argument("scope", nargs="?", default=DEFAULT_SCOPE)
    return parser.parse_args()


def _explain(error: FunctionError) -> str:
    """Return the cause before the traceback. A wrong setting needs no traceback."""
    if error.error_type == "SettingsError":
        return str(error)
    return f"{error.cause}\n{error.trace}"


def main() -> int:
    """Run the command. Returns the exit status."""
    arguments = _arguments()
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
        print(_explain(error), file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        other = configured.port + (1 if configured.port < MAX_PORT else -1)
        print(f"PORT {configured.port} is in use; try PORT={other}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
