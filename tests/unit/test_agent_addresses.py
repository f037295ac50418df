"""The host's addresses change: who is told, and when a new connection is opened."""

import asyncio

from hostmesh_agent.alarms import Alarms
from hostmesh_agent.own_addresses import AT_ONCE, WINDOW_S, OwnAddresses
from hostmesh_api.v1.hostmesh_pb2 import ReportResponse
from hostmesh_api.wire import ADDRESS_STAYS
from waiting import until


class Host:
    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.connected, self.now_s = True, 0.0
        self.reconnects = self.reports = 0
        self.alarms = Alarms()
        self.own = OwnAddresses(
            self.alarms,
            lambda: self.addresses,
            lambda: self.connected,
            self._reconnect,
            self._report,
            now_s=lambda: self.now_s,
        )
        self.own.look()

    def _reconnect(self) -> None:
        self.reconnects += 1

    def _report(self) -> None:
        self.reports += 1

    def has(self, *addresses: str) -> tuple[int, int]:
        """Change the addresses; return how many connections were opened and reports asked for until now."""
        self.addresses = list(addresses)
        self.own.look()
        return self.reconnects, self.reports


def test_an_address_that_went_takes_its_connection_with_it_and_one_that_came_does_not() -> None:
    host = Host("10.0.0.1")
    assert host.has("10.0.0.1") == (0, 0)
    assert host.has("10.0.0.1", "fd00::1") == (0, 1)
    assert host.has("fd00::1") == (1, 2)
    # There was nothing to connect from: the next address is used at once, and not after a pause.
    host.connected = False
    assert host.has() == (2, 3)
    assert host.has("10.0.0.2") == (3, 4)


def test_addresses_that_come_and_go_all_the_time_leave_the_connection_alone_for_a_while() -> None:
    host = Host("10.0.0.1")
    for _ in range(AT_ONCE + 2):
        host.has("10.0.0.1", "172.18.0.1")
        host.has("10.0.0.1")
    assert host.reconnects == AT_ONCE, "nobody knows from which of them it is"
    host.now_s = WINDOW_S - 1
    host.own.look()
    assert host.reconnects == AT_ONCE
    host.now_s = WINDOW_S
    host.own.look()
    host.own.look()
    assert host.reconnects == AT_ONCE + 1, "it is not forgotten"


def test_a_connection_that_is_younger_than_the_loss_of_an_address_is_not_given_up_for_it() -> None:
    host = Host("10.0.0.1")
    for _ in range(AT_ONCE + 1):
        host.has("10.0.0.1", "172.18.0.1")
        host.has("10.0.0.1")
    host.own.reached()
    host.now_s = WINDOW_S
    host.own.look()
    assert host.reconnects == AT_ONCE


def test_what_could_not_be_told_is_told_once_there_is_a_connection() -> None:
    host = Host("10.0.0.1")
    host.own.reached()
    assert host.reports == 0
    host.has("10.0.0.2")
    host.own.reached()
    host.own.reached()
    assert host.reports == 3
    host.own.taken(ReportResponse())
    host.own.reached()
    assert host.reports == 3


def test_why_an_address_is_not_followed_is_an_alarm_for_as_long_as_the_controller_says_so() -> None:
    host = Host("10.0.0.1")
    host.own.taken(ReportResponse(address_problem="Host web is at 10.0.0.9"))
    assert [str(each) for each in host.alarms] == [f"{ADDRESS_STAYS}: Host web is at 10.0.0.9"]
    host.own.taken(ReportResponse())
    assert list(host.alarms) == []


async def test_a_host_that_cannot_be_looked_at_for_a_while_ends_nothing() -> None:
    looks: list[list[str] | OSError] = [["10.0.0.1"], OSError(24, "Too many open files"), ["10.0.0.2"]]
    reports: list[int] = []

    def addresses() -> list[str]:
        found = looks.pop(0) if len(looks) > 1 else looks[0]
        if isinstance(found, OSError):
            raise found
        return found

    own = OwnAddresses(Alarms(), addresses, lambda: True, lambda: None, lambda: reports.append(1), look_s=0.01)
    task = asyncio.create_task(own.run())
    try:
        await until(lambda: bool(reports) or task.done())
        assert reports == [1], "the change is told once there is a descriptor again"
    finally:
        task.cancel()
        await asyncio.wait([task])
