"""Herald with a clock eleven minutes ahead.

Connections of the present are stale there, and no handshake is still in progress.
"""

import importlib.util
import time
from pathlib import Path

AHEAD_SECONDS = 700
HERALD = Path(__file__).parents[3] / "app.py"

time_now, time_now_ns = time.time, time.time_ns
time.time = lambda: time_now() + AHEAD_SECONDS
time.time_ns = lambda: time_now_ns() + AHEAD_SECONDS * 10**9

spec = importlib.util.spec_from_file_location("herald", HERALD)
assert spec is not None
assert spec.loader is not None
herald = importlib.util.module_from_spec(spec)
spec.loader.exec_module(herald)
globals().update(vars(herald))
