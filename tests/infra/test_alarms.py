"""The alarms."""

from gateway.configuration import PROJECT
from infra.alarms import alarms
from infra.stage import Stage

DEV = Stage("dev")


def test_every_alarm_has_its_section_in_the_documents() -> None:
    page = (PROJECT / "docs" / "operations.md").read_text()
    for alarm in alarms(DEV).values():
        name = alarm["Properties"]["AlarmDescription"].rpartition("#")[2]
        assert f'### <a id="{name}"></a>' in page
