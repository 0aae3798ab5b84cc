"""`python -m gateway.chalice_local.keeper OWNER FILE DESCRIPTOR`: the AWS of `chalice local`.

Chalice's reloader starts a new process for each change of code, so the emulator can't belong to
one of these. It ends with their owner, the process that the user started.
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
    """Run an emulator until the process `owner` ends.

    Args:
        owner: A process id.
        file: The file that other processes read; it and its `.told` are removed at the end.
        descriptor: The file, open and locked. The emulator's variables are written to it, and the
            lock shows that the emulator is running.
    """
    app_variables = {**os.environ, QUEUE_URL: ""}  # nothing would take messages from a queue
    try:
        async with emulated_aws(app_variables) as variables:
            os.write(descriptor, json.dumps(variables).encode() + b"\n")
            await asyncio.to_thread(wait_for_end, owner)
    finally:
        for path in (file, file.with_suffix(".told")):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    asyncio.run(keep(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
