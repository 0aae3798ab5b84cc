"""Senders of queued messages pay for the frames that workers send."""

from typing import Any

from chalicelib.clock import EpochMs
from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.parcel import Parcel
from chalicelib.errors import Unavailable
from chalicelib.fanout.charges import FanoutCharges, SentCopies, paid_after
from chalicelib.fanout.progress import ClaimedMessages, ShardPosition
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.cost import Debt
from chalicelib.protocol.messages import Message
from tests.support.tables import recipient

BEGIN = ShardPosition("r", 0, "")


class Debts(list[tuple[str, Debt]]):
    """Takes debts; `error` refuses them."""

    error: Exception | None = None

    def owe(self, user_key: str, now: EpochMs, debt: Debt) -> None:
        if self.error is not None:
            raise self.error
        self.append((user_key, debt))


def message(message_id: str) -> Message:
    audience = Audience(AudienceKind.ALL)
    return Message(
        id=message_id, sender="a", timestamp=EpochMs(1), audience=audience, type="t", data=1
    )


def claimed(sender: str = "/alice", paid: int = 1, messages: int = 1) -> ClaimedMessages:
    return ClaimedMessages([message(str(n)) for n in range(messages)], None, sender, paid)


def charges(debts: Debts) -> FanoutCharges:
    return FanoutCharges(debts.owe, now=lambda: EpochMs(1))


def test_what_was_paid_is_used_up_by_the_slices_of_the_first_shard() -> None:
    debts = Debts()
    charging = charges(debts)
    charging.charge([(ShardPosition("r", 1, ""), claimed(paid=7), 500)])
    charging.charge([(BEGIN, claimed(paid=7), 500)])
    left = paid_after(7, 500)
    charging.charge([(ShardPosition("r", 0, "c-5"), claimed(paid=left), 500)])
    assert (left, paid_after(left, 500)) == (2, 0)
    assert debts == [("/alice", Debt(5, 5)), ("/alice", Debt(3, 3))]


def test_a_slice_that_was_paid_costs_no_call() -> None:
    debts = Debts()
    charges(debts).charge([(BEGIN, claimed(paid=5), 500)])
    assert debts == []


def test_less_than_a_unit_is_owed_until_a_unit_is_complete() -> None:
    debts = Debts()
    charging = charges(debts)
    later = ShardPosition("r", 1, "c-5")
    for _ in range(5):
        charging.charge([(later, claimed(), 50), (later, claimed("/bob"), 10)])
    assert debts == [("/alice", Debt(1, 1)), ("/alice", Debt(1, 1))]


def test_requests_of_one_sender_are_one_charge() -> None:
    debts = Debts()
    later = ShardPosition("r", 1, "c-5")
    charges(debts).charge([(later, claimed(), 60), (later, claimed(), 60)])
    assert debts == [("/alice", Debt(1, 1))]


def test_the_quota_counts_messages_or_units_whichever_are_more() -> None:
    debts = Debts()
    charges(debts).charge([(BEGIN, claimed(paid=1, messages=4), 600)])
    assert debts == [("/alice", Debt(5, 2))]


def test_a_debt_that_cannot_be_charged_is_charged_later() -> None:
    debts = Debts()
    debts.error = Unavailable("storage is unreachable")
    charging = charges(debts)
    later = ShardPosition("r", 1, "c-5")
    charging.charge([(later, claimed(), 250), (later, claimed("/bob"), 0)])
    debts.error = None
    charging.charge([(later, claimed(), 50)])
    assert debts == [("/alice", Debt(3, 3))]


def test_a_joint_frame_counts_for_the_request_of_its_first_message() -> None:
    copies = SentCopies({"1": "first", "2": "second"})
    joint = frame_of(b"x" * 40_000, (message("1"), message("2")))
    own: Any = frame_of(b"x", (message("2"),))
    copies.add([Parcel(recipient("c", "u"), (joint, own))] * 3)
    assert (copies.of("first"), copies.of("second"), copies.of("third")) == (6, 3, 0)
