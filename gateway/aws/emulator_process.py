"""`python -m gateway.aws.emulator_process SOCKET PORT`: MiniStack behind the guard.

`gateway.aws.emulator` starts it. It is a module of its own so that this process doesn't load the
SDK, which would take a third of its start.
"""

import os
import socket
import sys
import threading

from gateway.aws.variables import ACCOUNT, credentials_in
from gateway.configuration import host_names
from gateway.local_hosts import LocalHosts
from gateway.registry import REGISTRY


def main(descriptor: int, port: int) -> None:
    """Serve on the inherited socket until standard input ends, as it does when the starter ends."""
    starter = os.getppid()
    os.environ.update(
        GATEWAY_PORT=str(port),
        BIND_HOST="127.0.0.1",
        MINISTACK_HOST="127.0.0.1",
        MINISTACK_ACCOUNT_ID=ACCOUNT,
        SERVICES="dynamodb,secretsmanager,sns,sqs",
        LOG_LEVEL="ERROR",
        IOT_MTLS_ENABLED="0",
        SFTP_ENABLED="0",
    )

    def end_with_starter() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        try:
            REGISTRY.publish_after(starter)  # a killed starter couldn't do it
        finally:
            os._exit(0)  # the data is not kept

    threading.Thread(target=end_with_starter, daemon=True).start()

    import uvicorn
    from ministack.app import app

    from gateway.aws.guard import Guard

    guard = Guard(app, credentials_in(os.environ), LocalHosts(host_names(os.environ)))
    config = uvicorn.Config(guard, log_level="error", access_log=False, lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
