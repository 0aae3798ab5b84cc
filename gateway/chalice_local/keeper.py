"""`python -m gateway.chalice_local.keeper OWNER FILE DESCRIPTOR`: the AWS of `chalice local`.

Chalice's reloader starts a new process for each change of code, so the emulator belongs to none of
these: it ends with the owner, the process that a user has started and that they all come from.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from gateway.aws.emulator import emulated_aws
from gateway.aws.variables import QUEUE_URL
from gateway.machine.processes import wait_for_end


async def keep(owner: int, file: Path, descriptor: int) -> None:
    """Say in an open file where the emulator is, and end with the process `owner`.

    The file's lock, which came with the descriptor, shows that the emulator is there.
    """
    environment = {**os.environ, QUEUE_URL: ""}  # nothing would take from a queue
    try:
        async with emulated_aws(environment) as variables:
            os.write(descriptor, json.dumps(variables).encode() + b"\n")
            await asyncio.to_thread(wait_for_end, owner)
    finally:
        for left in (file, file.with_suffix(".told")):
            left.unlink(missing_ok=True)


if __name__ == "__main__":
    asyncio.run(keep(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
