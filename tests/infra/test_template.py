"""The templates of the resources that Chalice doesn't create."""

import re

from infra.stage import Stage
from infra.template import ACCESS_LOG, REST_ACCESS_LOG, merge_template

DEV = Stage("dev")


def test_access_logs_contain_nothing_that_a_client_sent() -> None:
    for fields in (ACCESS_LOG, REST_ACCESS_LOG):
        assert all(re.fullmatch(r"\$context\.[A-Za-z.]+", variable) for variable in fields.values())
        assert not re.search("header|query|path(?!$)|protocol", " ".join(fields.values()))


def test_building_a_template_changes_no_definition() -> None:
    assert merge_template(DEV) == merge_template(DEV)
