"""A program for the tests of a fork server. It evaluates each line that it gets."""

import json
import signal  # noqa: F401  for the expressions
import socket
import sys


def main(descriptor: int) -> None:
    """Answer expressions with JSON until the socket is closed."""
    with socket.socket(fileno=descriptor) as channel, channel.makefile("rw") as lines:
        for line in lines:
            lines.write(json.dumps(eval(line, {**globals(), "channel": channel})) + "\n")
            lines.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
