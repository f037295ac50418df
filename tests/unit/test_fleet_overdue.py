"""A host that lives and reports nothing: what the list of hosts says of it."""

from datetime import UTC, datetime, timedelta

import pytest

from hostmesh_controller.api.fleet import is_overdue
from hostmesh_controller.cli.hosts import lease_text

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("ago_s", "interval_s", "overdue"), [(29, 10, False), (31, 10, True), (1200, 600, False)])
def test_two_reports_that_did_not_come_are_missed(ago_s: int, interval_s: int, overdue: bool) -> None:
    assert is_overdue(NOW - timedelta(seconds=ago_s), interval_s, NOW) is overdue


def test_a_host_that_never_reported_is_not_overdue() -> None:
    assert not is_overdue(None, 10, NOW)


def test_the_lease_of_a_host_says_what_else_is_known() -> None:
    def said(lease: str, *, overdue: bool = False, envoy_down: bool = False) -> str:
        return lease_text({"lease": lease, "overdue": overdue, "envoy_down": envoy_down})

    assert said("alive") == "alive"
    assert said("alive", overdue=True) == "alive, no reports"
    assert said("agent-away", overdue=True) == "agent-away"
    assert said("alive", envoy_down=True) == "alive, envoy down"
