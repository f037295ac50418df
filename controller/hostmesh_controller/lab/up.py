"""Bringing hosts up, several at a time: all of them are ready, or what failed is said and cleared away."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
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
    """Start the lab where there is none, and the named hosts in it.

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
            new = _facts(joined, outside, existing)
            _bring_up(layout, lab, new, say)
        except BaseException:
            if not keep:
                _clear(layout, new, fresh=fresh)
            raise


def _facts(joined: Sequence[str], outside: Sequence[str], existing: dict[str, HostFacts]) -> list[HostFacts]:
    names = [*joined, *outside]
    indices = hosts.indices(len(names), {host.index for host in existing.values()})
    return [HostFacts(name, index, name in joined) for name, index in zip(names, indices, strict=True)]


def _clear(layout: Layout, new: Sequence[HostFacts], *, fresh: bool) -> None:
    if fresh:
        world.destroy(layout)
        return
    lab = world.lab_of(layout)
    for host in new:
        if layout.host(host.name).root.exists():
            hosts.remove(layout, lab, host)


def _bring_up(layout: Layout, lab: LabFacts, new: Sequence[HostFacts], say: Callable[[str], None]) -> None:
    """The controller and the hosts start side by side; a host joins when both are there."""
    with ThreadPoolExecutor(_AT_A_TIME + 1) as pool:
        mesh = pool.submit(controller.start, layout, lab)
        futures = {pool.submit(_one, layout, lab, host, mesh.result): host for host in new}
        problems = []
        for future in as_completed(futures):
            host = futures[future]
            try:
                future.result()
            except LabError as error:
                problems.append(str(error))
            else:
                say(f"{host.name:<12} {lab.net.address(host.index)}" + ("" if host.joined else "   outside the mesh"))
        try:
            mesh.result()
        except LabError as error:
            problems = [str(error)]
    if problems:
        raise LabError("\n".join(problems))


def _one(layout: Layout, lab: LabFacts, host: HostFacts, controller_ready: Callable[[], None]) -> None:
    hosts.create(layout, lab, host)
    hosts.start(layout, lab, host)
    if not host.joined:
        return
    controller_ready()
    agent.join(layout, lab, host.name, controller.register(layout, lab, host.name, host.index))
    agent.start(layout, lab, host.name)
    agent.wait_ready(layout, lab, host.name)
