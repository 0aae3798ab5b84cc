"""The sizes that divide the fan-out's work."""

from typing import NamedTuple

from chalicelib.store.audience import PAGE_ITEMS


class FanoutLimits(NamedTuple):
    """The sizes of shards, slices and pages. Tests use smaller ones."""

    shard_recipients: int = 10_000
    """Recipients in a shard: about a second of one worker's time."""
    slice_seconds: float = 1.0
    """How long an invocation reads recipients, which bounds how long other jobs wait."""
    page_items: int = PAGE_ITEMS
    """Recipients that are read at a time."""


DEFAULT_LIMITS = FanoutLimits()
