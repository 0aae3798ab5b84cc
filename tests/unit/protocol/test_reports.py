"""Reports add up, list a bounded number of failures, and survive an interruption."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import MAX_FAILED, Interrupted, Queued, Report, Result


@given(st.lists(st.sampled_from(list(Result)), max_size=300))
def test_recipients_are_the_sum_of_the_results(results: list[Result]) -> None:
    report = Report("id")
    for index, result in enumerate(results):
        report.add(str(index), "bob", result, "why")
    entry: Any = report.to_dict()
    assert entry["recipients"] == len(results) == sum(entry[result] for result in Result)
    failures = [str(i) for i, result in enumerate(results) if result is not Result.DELIVERED]
    assert [failed["connectionId"] for failed in entry["failed"]] == failures[:MAX_FAILED]


def test_a_report_names_the_recipients_that_were_not_reached() -> None:
    report = Report("id")
    report.add("c", "u", Result.GONE, "gone")
    assert report.to_dict() == {
        "id": "id", "recipients": 1, "delivered": 0, "gone": 1, "stale": 0, "rejected": 0,
        "failed": [{"connectionId": "c", "userId": "u", "reason": "gone"}],
    }  # fmt: skip


def test_a_hundred_failures_are_listed_and_all_are_counted() -> None:
    report = Report("id")
    for number in range(MAX_FAILED + 1):
        report.add(f"L0SM9cOFvHcCI{number:03}", "u" * 128, Result.STALE, "timeout")
    assert (len(report.failed), report.counts[Result.STALE]) == (100, 101)


def test_the_listed_failures_have_a_bounded_size_and_all_are_counted() -> None:
    """100 reports of a request must fit into Lambda's 6 MB, even with `\\u` escapes."""
    report = Report("id")
    for number in range(MAX_FAILED):
        report.add(f"c{number}", "\N{PARTY POPPER}" * 64, Result.STALE, "timeout")
    assert 0 < len(report.failed) < MAX_FAILED
    assert report.counts[Result.STALE] == MAX_FAILED
    assert len(json.dumps(report.to_dict())) * 100 < 6 * 1024 * 1024


def test_a_queued_message_has_only_its_id() -> None:
    assert Queued("id").to_dict() == {"id": "id", "queued": True}


def test_an_interruption_keeps_the_error_and_the_reports() -> None:
    reports = [Report("id")]
    interrupted = Interrupted(Unavailable("gone", retry_after=2.0), reports)
    assert (interrupted.detail, interrupted.retry_after) == ("gone", 2.0)
    assert interrupted.reports is reports
