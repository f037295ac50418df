"""Playing the demo: raise the curtain, make every claim, say what held, clear away."""

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab import machine, up, world
from hostmesh_controller.lab.demo.claims import CLAIMS, Claim, ClaimError
from hostmesh_controller.lab.demo.snapshot import Snapshot
from hostmesh_controller.lab.demo.stage import MESH, OUTSIDE, Stage
from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.layout import Layout
from hostmesh_controller.lab.space import tail

_LOG_LINES: Final = 8
_AT_A_TIME: Final = max(2, os.cpu_count() or 2)


def play(layout: Layout, say: Callable[[str], None], *, keep: bool) -> bool:
    """Play the whole demo; True when every claim held. The lab is gone afterwards unless `keep`.

    Raises:
        LabError: the stage could not be set.
    """
    began = time.monotonic()
    machine.check_programs(tcpdump="tcpdump")
    if disk.read_lab(layout) is not None:
        raise LabError(f"there is a lab in {layout.root}; end it: hostmesh lab down --dir {layout.root}")
    say(f"Five hosts on this machine, each with its own network, disk and programs, in {layout.root}\n")
    try:
        stage, before = _set(layout, say)
        held = [_make(stage, before, claim, say) for claim in CLAIMS]
    finally:
        if not keep and disk.read_lab(layout) is not None:
            world.destroy(layout)
    seconds = time.monotonic() - began
    say(f"\n{sum(held)} of {len(held)} claims held, {seconds:.0f} s.")
    if keep:
        say(_look_around(layout))
    return all(held)


def _set(layout: Layout, say: Callable[[str], None]) -> tuple[Stage, Snapshot]:
    """Bring the hosts up outside the mesh, look at one of them, then take four of them in."""
    began = time.monotonic()
    up.up(layout, [], [*MESH, OUTSIDE], lambda _: None, keep=False)
    stage = Stage(layout, world.lab_of(layout))
    before = Snapshot.of(stage.space("shop"))
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        list(pool.map(stage.install, [*MESH, OUTSIDE]))
        list(pool.map(stage.join, MESH))
    stage.apply("mesh.yaml")
    stage.wait_for_workloads()
    _tell(say, "✓", f"{', '.join(MESH)} have joined; {OUTSIDE} has not", "their programs run unchanged", began)
    return stage, before


def _make(stage: Stage, before: Snapshot, claim: Claim, say: Callable[[str], None]) -> bool:
    began = time.monotonic()
    try:
        found = claim.play(stage, before)
    except (ClaimError, LabError) as error:
        _tell(say, "✗", claim.text, "", began)
        say(_indented(f"{error}\n{_evidence(stage, claim)}"))
        return False
    _tell(say, "✓", claim.text, found, began)
    return True


def _tell(say: Callable[[str], None], sign: str, text: str, found: str, began: float) -> None:
    colour = {"✓": "\x1b[32m", "✗": "\x1b[31m"}[sign] if sys.stdout.isatty() else ""
    shown = f"{colour}{sign}\x1b[0m" if colour else sign
    say(f"{shown} {text}{': ' if found else ''}{found} ({time.monotonic() - began:.1f} s)")


def _evidence(stage: Stage, claim: Claim) -> str:
    """The end of the logs that may tell why."""
    parts = [("controller", tail(stage.layout.controller_log, _LOG_LINES))]
    for host in claim.hosts:
        place = stage.layout.host(host)
        parts.append((f"agent/{host}", tail(place.agent_log, _LOG_LINES)))
        parts.append((f"envoy/{host}", tail(place.disk("var-lib") / "upper/hostmesh/envoy/envoy.log", _LOG_LINES)))
    return "\n".join(f"--- the end of {name}'s log:\n{text}" for name, text in parts if text)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _look_around(layout: Layout) -> str:
    where = f"--dir {layout.root}"
    return f"""
It is left running. Look around:
    eval "$(hostmesh lab env {where})"
    hostmesh lab status {where}
    hostmesh proxy status; hostmesh get virtualservice catalog -o yaml
    hostmesh lab exec {where} catalog -- hostmesh-agent status
    hostmesh lab exec {where} catalog -- nft list ruleset
    hostmesh lab exec {where} catalog --user app -- curl -s http://ratings:8080/
    hostmesh lab logs {where} agent/catalog
End it: hostmesh lab down {where}"""
