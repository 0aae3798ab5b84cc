"""What the most expensive requests cost their sender, and how many a user may send.

Prints the figures with `pytest -s`.
"""

from collections.abc import Sequence

import pytest

from chalicelib.clock import EpochMs
from chalicelib.delivery.frames import Framing
from chalicelib.errors import RateLimited
from chalicelib.protocol.cost import Bill, sent_copies, units_of, written_copies
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import Message, accept, parse_messages
from chalicelib.protocol.strict_json import encode
from chalicelib.protocol.ulid import Stamp
from chalicelib.store.rate_limits import Rate
from tests.support.tables import NOW, limiter

KB = 1024
SECONDS = 10
FRAMING = Framing(32 * KB, Encryption(None))


def accepted(body: object) -> list[Message]:
    drafts = parse_messages(body, may_encrypt=False)
    return accept(drafts, sender="alice", stamp=Stamp.fresh(NOW))


def posts_in(seconds: int, units: int) -> int:
    """Return how many requests of so many units the default rate lets pass in some seconds."""
    sender = limiter("due", Rate.per_second(20, 40))
    passed = 0
    for moment in range(0, seconds * 1000 + 1, 10):
        try:
            sender.charge("alice", EpochMs(NOW + moment), lambda _: None, units=units)
        except RateLimited:
            continue
        passed += 1
    return passed


def per_recipient(messages: Sequence[Message]) -> tuple[int, int]:
    """Return the frames and the copies that each recipient of all messages gets."""
    framer = FRAMING.framer(messages, None)
    frames = framer.frames((1 << len(messages)) - 1, "bob")
    assert len(frames) == framer.most_frames
    return len(frames), sum(sent_copies(len(frame.body)) for frame in frames)


def test_a_hundred_messages_to_a_hundred_names_of_nobody_cost_a_hundred_units() -> None:
    names = [f"{number}" for number in range(100)]
    body = {"messages": [{"to": {"users": names}, "data": 1}] * 100}
    messages = accepted(body)
    assert 50 * KB < len(encode(body)) < 53 * KB
    copies = written_copies(messages)
    units = units_of(copies)
    posts = posts_in(SECONDS, units)
    print(f"{copies} items, {units} units, {posts} in {SECONDS} s")
    assert (copies, units) == (10_000, 100)
    assert posts_in(SECONDS, 1) == 240
    assert posts == 3


@pytest.mark.parametrize("members", [150, 1000])
def test_two_megabytes_to_a_group_cost_a_unit_for_each_hundred_metered_messages(
    members: int,
) -> None:
    large = {"to": {"groups": ["team"]}, "data": "x" * 34_000}
    messages = accepted({"messages": [large] * 60})
    frames, metered = per_recipient(messages)
    assert (frames, metered) == (60, 120)
    paid = units_of(written_copies(messages))
    debt = Bill(messages=60, paid=paid).add(members * metered)
    assert debt is not None
    units = paid + debt.units
    posts = posts_in(600, units)
    print(
        f"{members} members: {members * frames} frames, {members * metered} metered messages,"
        f" {units} units, {posts * members * metered / 600:.0f} metered messages a second"
    )
    assert units == members * metered / 100
    # In the long run a user causes no more than the rate pays for, and a request more.
    assert posts * units <= 600 * 20 + 40 + units
