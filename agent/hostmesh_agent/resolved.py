"""systemd-resolved: the mesh's domain is asked of the mesh, everything else where it was asked before.

What it is told belongs to a link of our own (`name_link`): a server and the domains for which it is the only one. It
keeps that over restarts of its own, and forgets it with the link, so that there is nothing to restore; a host that
starts has neither. Told through resolvectl, which comes with it.
"""

import os
import re
import shutil
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from hostmesh_agent import name_link, rights
from hostmesh_agent.mesh_names import MeshNames
from hostmesh_api import wire

RUN: Final = Path("/run/systemd/resolve")
_SOCKET: Final = "io.systemd.Resolve"
_STATE: Final = "netif"
_STUB: Final = f"{int.from_bytes(bytes([127, 0, 0, 53]), sys.byteorder):08X}:0035"
"""127.0.0.53:53, as the kernel lists it."""
_UNIT: Final = "/system.slice/systemd-resolved.service"
_PLACE: Final = re.compile(r"^(?:0:|\d+:name=systemd):(.*)$", re.MULTILINE)
"""A process's place in cgroup v2, and in the tree that systemd has beside v1."""
_TOLD_WITHIN_S: Final = 5.0
_KNOWS_LINK_WITHIN_S: Final = 3.0
_PAUSE_S: Final = 0.05
_OFF: Final = ("llmnr", "mdns", "dnsovertls", "dnssec")
"""What is not spoken on this link. Names of the mesh are signed by nobody."""


class ResolvedError(RuntimeError):
    """systemd-resolved was not told. The message says what it, or the kernel, said."""


def runs() -> bool:
    """Return whether systemd-resolved is there to be told, and in our own network.

    That of another network namespace would take the number of our link for that of one of its own.
    """
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_TOLD_WITHIN_S)
            asking.connect(os.fspath(RUN / _SOCKET))
            credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return _stub_listens()
    pid = struct.unpack("3i", credentials)[0]
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino == Path("/proc/thread-self/ns/net").stat().st_ino
    except PermissionError:  # we are not root
        return _stub_listens() or _is_the_hosts(pid)
    except OSError:  # of another process namespace, or gone
        return False


def _stub_listens() -> bool:
    """Before systemd 246 there is no such socket: who listens on its address is of our own network."""
    try:
        return (RUN / "stub-resolv.conf").exists() and _STUB in Path("/proc/thread-self/net/udp").read_text()
    except OSError:
        return False


def _is_the_hosts(pid: int) -> bool:
    """Its stub may be off (DNSStubListener=no): who may not look at its network goes by whose unit it is."""
    try:
        return of_one_manager(*(Path(f"/proc/{each}/cgroup").read_text() for each in (pid, "thread-self")))
    except OSError:
        return False


def of_one_manager(theirs: str, ours: str) -> bool:
    """Return whether two texts of /proc/PID/cgroup are of systemd-resolved and of our agent, units of one systemd.

    Those have one network: neither unit has one of its own.
    """
    return any(
        re.fullmatch(re.escape(path.removesuffix(_UNIT)) + r"(/[^/]+\.slice)+/hostmesh-agent\.service", our)
        for path in _PLACE.findall(theirs)
        if path.endswith(_UNIT)
        for our in _PLACE.findall(ours)
    )


def domains(names: MeshNames, more: tuple[str, ...]) -> tuple[str, ...]:
    """Return what the link is told: where short names are looked for, and `~DOMAIN` for what is only asked there."""
    return (*names.search(), *(f"~{each}" for each in more))


class Resolved:
    """What it has been told. Methods block for some 50 ms where there is something to tell."""

    def __init__(self) -> None:
        self._told: tuple[tuple[str, ...], object] | None = None

    def put(self, wanted: tuple[str, ...]) -> None:
        """Have the domains asked of the mesh (none: nothing is), if they are not already.

        Raises:
            ResolvedError: it was not told.
        """
        if not wanted:
            self.remove()
        elif self._told is None or self._told != (wanted, self._state()):
            self._told = None
            self._tell(wanted)
            self._told = (wanted, self._state())

    def remove(self) -> None:
        """Take everything back. Needs nothing but the link; is done where we have never been.

        Raises:
            ResolvedError: the link cannot be removed.
        """
        self._told = None
        try:
            found = name_link.find()
            if found is None or not found.ours:
                return
            with suppress(ResolvedError):  # it need not run
                _resolvectl("revert", name_link.NAME)
            name_link.remove()
        except name_link.LinkError as error:
            raise ResolvedError(str(error)) from error
        # Where it does not run it has not noticed, and another link may get the same number.
        with suppress(PermissionError):
            (RUN / _STATE / str(found.index)).unlink(missing_ok=True)

    def _tell(self, wanted: tuple[str, ...]) -> None:
        try:
            name_link.make()
        except name_link.LinkError as error:
            raise ResolvedError(str(error)) from error
        _when_it_knows_the_link("default-route", "no")
        for what in _OFF:
            _resolvectl(what, name_link.NAME, "no")
        # The domains before the server: without a server they lead nowhere, the other way round all names would.
        _resolvectl("domain", name_link.NAME, *wanted)
        _resolvectl("dns", name_link.NAME, wire.SPLIT_DNS_ADDRESS)

    def _state(self) -> object:
        """Return what changes when somebody else changes the link, or what it was told; nothing is read."""
        try:
            found = name_link.find()
        except name_link.LinkError:
            return None
        if found is None or not found.up:
            return None
        # Where it keeps what it was told, for a restart of its own: gone, or another file, when that has changed.
        with suppress(OSError):
            status = (RUN / _STATE / str(found.index)).stat()
            return (found, status.st_ino, status.st_mtime_ns, status.st_size)
        return (found,)


def _when_it_knows_the_link(what: str, *values: str) -> None:
    """Tell it the first thing about a new link, of which it hears from the kernel in its own time."""
    deadline = time.monotonic() + _KNOWS_LINK_WITHIN_S
    while True:
        try:
            return _resolvectl(what, name_link.NAME, *values)
        except ResolvedError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE_S)


def _resolvectl(what: str, link: str, *values: str) -> None:
    program = shutil.which("resolvectl")
    if program is None:
        raise ResolvedError("there is no resolvectl to tell systemd-resolved: install it, or stop systemd-resolved")
    try:
        rights.here().resolvectl(program, what, link, values)
    except OSError as error:
        raise ResolvedError(str(error)) from error
