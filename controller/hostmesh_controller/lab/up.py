"""Bringing hosts up, several at a time: all of them are ready, or what failed is said and cleared away."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Final

from hostmesh_controller.lab import agent, controller, machine, world
from hostmesh_controller.lab import host as hosts
from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.layout import HostFacts, LabFacts, Layout

# Joining is mostly Python starting up: more at a time than this only makes each of them slower.
_AT_A_TIME: Final = max(2, os.cpu_count() or 2)


def up(
    layout: Layout, joined: Sequence[str], outside: Sequence[str], say: Callable[[str], None], *, keep: bool = False
) -> None:
    """Start the lab where there is none, and the named hosts in it; `outside` are left outside the mesh.

    Raises:
        LabError: one line or more for each host that failed; what this call made is gone again unless `keep`.
    """
    machine.check_programs()
    with disk.made_and_locked(layout) as made:
        fresh = not layout.facts.exists()
        existing = disk.read_hosts(layout)
        hosts.check_names([*joined, *outside], set(existing))
        new: list[HostFacts] = []
        try:
            lab = world.create(layout, made) if fresh else world.lab_of(layout)
            new = _facts([*joined, *outside], existing)
            _bring_up(layout, lab, new, frozenset(outside), say)
        except BaseException:
            if not keep:
                _clear(layout, new, fresh=fresh)
            raise


def _facts(names: Sequence[str], existing: dict[str, HostFacts]) -> list[HostFacts]:
    indices = hosts.indices(len(names), {host.index for host in existing.values()})
    return [HostFacts(name, index) for name, index in zip(names, indices, strict=True)]


def _clear(layout: Layout, new: Sequence[HostFacts], *, fresh: bool) -> None:
    if fresh:
        world.destroy(layout)
        return
    lab = world.lab_of(layout)
    for host in new:
        if layout.host(host.name).root.exists():
            hosts.remove(layout, lab, host)


def _bring_up(
    layout: Layout, lab: LabFacts, new: Sequence[HostFacts], outside: frozenset[str], say: Callable[[str], None]
) -> None:
    """The controller and the hosts start side by side; a host joins when both are there."""
    problems = []
    with ThreadPoolExecutor(_AT_A_TIME + 1) as pool:
        mesh = pool.submit(controller.start, layout, lab)
        futures = {pool.submit(_boot, layout, lab, host, None if host.name in outside else mesh): host for host in new}
        for future in as_completed(futures):
            host = futures[future]
            try:
                future.result()
            except LabError as error:
                problems.append(str(error))
            else:
                remark = "   outside the mesh" if host.name in outside else ""
                say(f"{host.name:<12} {lab.net.address(host.index)}{remark}")
        try:
            mesh.result()
        except LabError as error:
            # Every host that waited for it has the same to tell.
            problems = [str(error)]
    if problems:
        raise LabError("\n".join(problems))


def _boot(layout: Layout, lab: LabFacts, host: HostFacts, mesh: Future[None] | None) -> None:
    hosts.create(layout, lab, host)
    hosts.start(layout, lab, host)
    if mesh is not None:
        mesh.result()
        agent.join(layout, lab, host.name, controller.register(layout, lab, host.name, host.index))
        agent.start(layout, lab, host.name)
        agent.wait_ready(layout, host.name)
