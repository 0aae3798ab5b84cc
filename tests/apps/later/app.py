"""Herald as it is in eleven minutes: whoever is silent until then is stale, and no handshake of now
is still under way."""

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
