"""The state of a lab as one document, and as a table for people."""

from typing import Any

from hostmesh_controller.lab import agent, controller, envoy
from hostmesh_controller.lab import host as hosts
from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab.layout import HostFacts, LabFacts, Layout
from hostmesh_controller.lab.process import ProcessRecord, alive
from hostmesh_controller.lab.subnet import GATEWAY


def status(layout: Layout, lab: LabFacts) -> dict[str, Any]:
    """Everything a script may want to know; pids are those of the machine, absent things are null."""
    world_pid = _pid(disk.read_process(layout.world))
    return {
        "dir": str(layout.root),
        "id": lab.id,
        "state": "running" if world_pid else "ended",
        "pid": world_pid,
        "user_namespace": lab.user,
        "subnet": str(lab.net.v4),
        "subnet6": str(lab.net.v6) if lab.ipv6 else None,
        "bridge": {
            "name": "br0",
            "address": lab.net.address(GATEWAY),
            "address6": lab.net.address6(GATEWAY) if lab.ipv6 else None,
            "netns": _namespace(world_pid, "net"),
            "link": None if lab.user else lab.shell_link,
        },
        "controller": {
            **_part(_pid(disk.read_process(layout.controller_process))),
            "address": controller.address(layout),
            "log": str(layout.controller_log),
        },
        "hosts": {name: _host(layout, lab, host) for name, host in disk.read_hosts(layout).items()},
    }


def _host(layout: Layout, lab: LabFacts, host: HostFacts) -> dict[str, Any]:
    place = layout.host(host.name)
    in_mesh = agent.joined(layout, host.name)
    pid = _pid(disk.read_process(place.init))
    return {
        "name": host.name,
        "state": "running" if pid else "stopped",
        "pid": pid,
        "ip": lab.net.address(host.index),
        "ip6": lab.net.address6(host.index) if lab.ipv6 else None,
        "mac": lab.net.mac(host.index),
        "link": hosts.link_name(host),
        "joined": in_mesh,
        "netns": _namespace(pid, "net"),
        "mntns": _namespace(pid, "mnt"),
        "agent": _first(agent.processes(layout, host.name)) if in_mesh else None,
        "envoy": _first(envoy.processes(layout, host.name)) if in_mesh else None,
        "log": str(place.agent_log),
    }


def _pid(record: ProcessRecord | None) -> int | None:
    return record.pid if record is not None and alive(record) else None


def _first(records: list[ProcessRecord]) -> dict[str, Any]:
    return _part(records[0].pid if records else None)


def _part(pid: int | None) -> dict[str, Any]:
    return {"state": "running" if pid else "stopped", "pid": pid}


def _namespace(pid: int | None, kind: str) -> str | None:
    return f"/proc/{pid}/ns/{kind}" if pid else None


def rows(document: dict[str, Any]) -> list[tuple[str, str, str, str, str, str]]:
    """Lines of the table: host, address, IPv6 address, host, agent and envoy state."""
    return [
        (
            host["name"],
            host["ip"],
            host["ip6"] or "-",
            host["state"],
            host["agent"]["state"] if host["agent"] else "-",
            host["envoy"]["state"] if host["envoy"] else "-",
        )
        for host in document["hosts"].values()
    ]
