"""What connections cost: a storm of new ones, a restart of the controller, and being there."""

import time
from collections.abc import Sequence
from typing import Final

from bench.figure import Figure
from bench.stage import Stage

_STORM_S: Final = 120.0
_IDLE_S: Final = 30.0
_REPORTS_WITHIN_S: Final = 10.0
_KB: Final = 1000


def storm(stage: Stage) -> Sequence[Figure]:
    """Connect everybody at once, each with nothing in hand."""
    fleet, controller = stage.fleet, stage.controller
    fleet.disconnect()
    stage.wait_for_connections(0)
    for proxy in fleet.proxies:
        proxy.held.clear()
    cpu_s = controller.cpu_s()
    message_bytes = fleet.response_bytes
    started_s = time.monotonic()
    fleet.connect()
    fleet.run(fleet.settled, within_s=_STORM_S)
    took_s = time.monotonic() - started_s
    failures = fleet.failures()
    first = f"; the first: {failures[0]}" if failures else ""
    each_bytes = (fleet.response_bytes - message_bytes) / stage.proxies
    return (
        Figure(f"failed streams in a storm of {stage.proxies} cold connects", len(failures), "", 0, first),
        Figure(
            f"the storm, until all {stage.proxies} have their first configuration",
            took_s,
            "s",
            detail=f"{each_bytes:.0f} B of messages each; the clients' handshakes share the cores",
        ),
        Figure(
            "controller CPU per cold connect",
            (controller.cpu_s() - cpu_s) / stage.proxies * 1e3,
            "ms",
            detail="mutual TLS, the certificate's check, the first configuration",
        ),
    )


def restart(stage: Stage) -> Sequence[Figure]:
    """Kill and start the controller; everybody comes back with the versions it holds."""
    fleet = stage.connected()
    message_bytes, messages = fleet.response_bytes, fleet.responses
    started_s = time.monotonic()
    stage.meanwhile(stage.controller.restart)
    up_s = time.monotonic() - started_s
    fleet.disconnect()
    fleet.connect()
    stage.settle()
    wire = fleet.wire()
    count = stage.proxies
    return (
        Figure(
            "configuration resent per proxy after a controller restart",
            (fleet.response_bytes - message_bytes) / count,
            "B",
            1000,
            f"{fleet.responses - messages} messages to {count} proxies; with the new connection's handshake "
            f"{wire.received / count:.0f} B over TCP",
        ),
        Figure("controller kill -9 to ready again", up_s, "s", detail=f"with {count} hosts in the store"),
    )


def memory(stage: Stage) -> Sequence[Figure]:
    """Compare the controller with and without its proxies; a controller of its own age, without the storms before."""
    fleet, controller = stage.fleet, stage.controller
    fleet.disconnect()
    controller.restart()
    before_bytes = controller.rss_bytes()
    fleet.connect()
    stage.settle()
    after_bytes = controller.rss_bytes()
    return (
        Figure(
            "controller memory per connected proxy",
            (after_bytes - before_bytes) / stage.proxies / _KB,
            "kB",
            150,
            f"resident: {before_bytes / _KB / _KB:.0f} MB without, {after_bytes / _KB / _KB:.0f} MB with "
            f"{stage.proxies}",
        ),
    )


def idle(stage: Stage) -> Sequence[Figure]:
    """Let everybody be connected, report as often as the controller says, and nothing else happen."""
    fleet, controller = stage.connected(), stage.controller
    _everybody_reports(stage)  # the first report of a host tells that its workload is ready, which others are told
    cpu_s = controller.cpu_s()
    _everybody_reports(stage)
    each_ms = (controller.cpu_s() - cpu_s) / stage.proxies * 1e3
    fleet.start_reports(fleet.report_interval_s)
    reports, cpu_s, started_s = fleet.reports, controller.cpu_s(), time.monotonic()
    fleet.serve(_IDLE_S)
    took_s = time.monotonic() - started_s
    share = (controller.cpu_s() - cpu_s) / took_s
    rate = (fleet.reports - reports) / took_s
    fleet.stop_reports()
    stage.settle()
    return (
        Figure("controller CPU per report of a host", each_ms, "ms", detail="1,000 reports within 10 s"),
        Figure(
            f"idle controller, {stage.proxies} connected",
            share * 100,
            "% of a core",
            1,
            f"over {_IDLE_S:.0f} s, with the hosts' reports: {rate:.1f} a second",
        ),
    )


def _everybody_reports(stage: Stage) -> None:
    fleet = stage.fleet
    all_of_them = fleet.reports + stage.proxies
    fleet.start_reports(_REPORTS_WITHIN_S)
    deadline_s = time.monotonic() + 3 * _REPORTS_WITHIN_S
    while fleet.reports < all_of_them:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{all_of_them - fleet.reports} reports were not answered\n{stage.log()}")
        fleet.serve(_REPORTS_WITHIN_S / 20)
    stage.settle()
