"""A host of the lab: `create` makes its disk, `start` boots it, `stop` ends it, `remove` forgets it."""

import errno
import os
import re
import shutil
import signal
import uuid
from pathlib import Path
from typing import Any, Final

from hostmesh_controller.lab import etc, machine, world
from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.layout import HostFacts, LabFacts, Layout
from hostmesh_controller.lab.process import alive, end, opened
from hostmesh_controller.lab.space import Space
from hostmesh_controller.lab.spawn import PROGRAMS, start_init
from hostmesh_controller.lab.subnet import FIRST_HOST, GATEWAY, LAST_HOST

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_OWN_TREES: Final = {"etc": "/etc", "var-lib": "/var/lib"}
# What a real installation on this machine may have left there must not be seen by a lab host.
_HIDDEN: Final = {"etc": ("hostmesh",), "var-lib": ("hostmesh", "hostmesh-controller")}
# The init gives programs 5 s to end, then the kernel ends them.
_STOP_S: Final = 15.0
_SYSCTLS: Final = {"net.ipv6.conf.all.accept_dad": "0", "net.ipv6.conf.default.accept_dad": "0"}


def check_names(names: list[str], existing: set[str]) -> None:
    """Raise `LabError` for a name that is no host name, comes twice, or is taken."""
    for position, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise LabError(f"{name!r} is not a host name: lower-case letters, digits and '-', at most 63")
        if name in names[:position]:
            raise LabError(f"host {name} is named twice")
        if name in existing:
            raise LabError(f"host {name} is in this lab already; start it again: hostmesh lab start host/{name}")


def indices(count: int, taken: set[int]) -> list[int]:
    """Return the lowest `count` free address indices of a lab."""
    free = [index for index in range(FIRST_HOST, LAST_HOST + 1) if index not in taken]
    if len(free) < count:
        raise LabError(f"a lab has room for {LAST_HOST - FIRST_HOST + 1} hosts")
    return free[:count]


def create(layout: Layout, lab: LabFacts, host: HostFacts) -> None:
    """Make the host's directory and disk; nothing runs yet."""
    place = layout.host(host.name)
    for tree, hidden in _HIDDEN.items():
        for part in ("upper", "work"):
            path = place.disk(tree) / part
            path.mkdir(parents=True)
            path.chmod(0o755)
        for name in hidden:
            _hide(place.disk(tree) / "upper" / name, Path(_OWN_TREES[tree]) / name, user=lab.user)
    place.logs.mkdir()
    _write_etc(place.disk("etc") / "upper", lab, host)
    disk.write_host(place, host)


def _hide(upper: Path, lower: Path, *, user: bool) -> None:
    upper.mkdir()
    upper.chmod(0o755)
    try:
        os.setxattr(upper, "user.overlay.opaque" if user else "trusted.overlay.opaque", b"y")
    except OSError as error:
        if error.errno != errno.ENOTSUP or lower.exists():
            raise LabError(f"{upper}: {error.strerror}; cure: --dir on an ordinary disk (ext4, xfs, btrfs)") from None


def _write_etc(upper: Path, lab: LabFacts, host: HostFacts) -> None:
    accounts = etc.accounts(Path("/etc/passwd").read_text(), Path("/etc/group").read_text())
    texts = {
        "hostname": f"{host.name}\n",
        "hosts": etc.HOSTS,
        "resolv.conf": etc.resolv_conf(lab.net.address(GATEWAY)),
        "machine-id": f"{uuid.uuid4().hex}\n",
        "passwd": accounts.passwd,
        "group": accounts.group,
        "hostmesh/agent.toml": etc.agent_toml(envoy=machine.envoy_binary() is not None),
    }
    for name, text in texts.items():
        path = upper / name
        path.write_text(text)
        path.chmod(0o644)


def start(layout: Layout, lab: LabFacts, host: HostFacts) -> None:
    """Boot the host: namespaces, file systems, network and process 1; no agent yet.

    Raises:
        LabError: a step failed, in its words; the host is down then.
    """
    place = layout.host(host.name)
    if alive(disk.read_process(place.init)):
        return
    the_world = world.space_of(layout, lab)
    _drop_link(the_world, host)
    with opened(the_world.init) as pidfd:
        if pidfd is None:
            raise LabError(f"the lab in {layout.root} has ended without `down`; clear it: hostmesh lab down")
        try:
            wish = {**_wish(layout, lab, host), "world": pidfd}
            started = start_init("host", wish, f"host {host.name}", place.init_log, pass_fds=(pidfd,))
        except LabError as error:
            raise _explained(error, layout) from None
    disk.write_process(place.init, started.record)
    started.stay()


def _explained(error: LabError, layout: Layout) -> LabError:
    if "mount overlay" not in str(error):
        return error
    return LabError(
        f"{error}\nthe hosts' disks are overlays, and the file system of {layout.root} cannot carry one;\n"
        "cure: --dir on an ordinary disk (ext4, xfs, btrfs) or a tmpfs, not inside a container's own layers"
    )


def link_name(host: HostFacts) -> str:
    """The host's port in the bridge, named after it as far as an interface's 15 characters allow."""
    return f"v-{host.name}" if len(host.name) <= 13 else f"v.{host.index}"


def _wish(layout: Layout, lab: LabFacts, host: HostFacts) -> dict[str, Any]:
    place, net = layout.host(host.name), lab.net
    accounts = etc.accounts(Path("/etc/passwd").read_text(), Path("/etc/group").read_text())
    network = [
        "link set lo up",
        f"addr add {net.address(host.index)}/24 dev eth0",
        *([f"addr add {net.address6(host.index)}/64 dev eth0 nodad"] if lab.ipv6 else []),
        "link set eth0 up",
        f"route add default via {net.address(GATEWAY)}",
        *([f"route add default via {net.address6(GATEWAY)}"] if lab.ipv6 else []),
    ]
    envoy = machine.envoy_binary()
    return {
        "user": lab.user,
        "name": host.name,
        "link": link_name(host),
        "mac": net.mac(host.index),
        "network": network,
        "sysctls": _SYSCTLS,
        "overlays": [
            {"target": target, "upper": str(place.disk(tree) / "upper"), "work": str(place.disk(tree) / "work")}
            for tree, target in _OWN_TREES.items()
        ],
        "programs": PROGRAMS,
        "links": machine.host_links(),
        "envoy": str(envoy) if envoy else "",
        "boot_id": str(uuid.uuid4()),
        "homes": {etc.home(etc.APP_USER): accounts.ids[etc.APP_USER]},
    }


def stop(layout: Layout, lab: LabFacts, host: HostFacts, number: signal.Signals) -> None:
    """End the host as a shutdown (SIGTERM) or a power cut (SIGKILL) would; its disk stays."""
    if number is signal.SIGKILL:
        # A host without power says no goodbye: its kernel must not end its connections where others hear it.
        _drop_link(world.space_of(layout, lab), host)
    end(disk.read_process(layout.host(host.name).init), number, _STOP_S)
    _drop_link(world.space_of(layout, lab), host)


def _drop_link(the_world: Space, host: HostFacts) -> None:
    # The kernel removes it with the host's network, but some time after the last process.
    the_world.run(["ip", "link", "delete", link_name(host)])


def remove(layout: Layout, lab: LabFacts, host: HostFacts) -> None:
    """Forget a host that did not come up."""
    stop(layout, lab, host, signal.SIGKILL)
    place = layout.host(host.name)
    if lab.user:
        world.space_of(layout, lab).run(["rm", "-rf", "--", str(place.root)])
    else:
        shutil.rmtree(place.root)


def space_of(layout: Layout, lab: LabFacts, name: str) -> Space:
    return Space(f"host/{name}", disk.read_process(layout.host(name).init), lab.user)


def host_of(layout: Layout, name: str) -> HostFacts:
    """Return the named host's facts.

    Raises:
        LabError: there is none of that name.
    """
    hosts = disk.read_hosts(layout)
    if name not in hosts:
        raise LabError(f"no host {name!r} in this lab; it has: {', '.join(hosts) or 'none'}")
    return hosts[name]
