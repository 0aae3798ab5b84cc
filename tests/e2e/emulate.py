"""An AWS that can be deployed to: the emulator with all its services, on the port that is named.

Run with `.venv/e2e/bin/python`, which has the translator of SAM templates. Ends with its standard
input.
"""

import os
import sys
import threading

import uvicorn


def main(port: str) -> None:
    os.environ.update(
        GATEWAY_PORT=port,
        BIND_HOST="127.0.0.1",
        MINISTACK_HOST="127.0.0.1",
        MINISTACK_ACCOUNT_ID="000000000000",
        LOG_LEVEL="ERROR",
        IOT_MTLS_ENABLED="0",
        SFTP_ENABLED="0",
    )

    def end_with_starter() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=end_with_starter, daemon=True).start()
    from ministack.app import app

    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error", access_log=False)


if __name__ == "__main__":
    main(sys.argv[1])
