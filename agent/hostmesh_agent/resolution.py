"""How this host finds names: who of systemd-resolved and resolv.conf is told of the mesh, and the telling.

systemd-resolved is told wherever it runs, and resolv.conf gets Envoy as its first resolver (before dnsmasq and whoever
is there). But the file stays where it names systemd-resolved, and where it lists the servers that systemd-resolved
asks: then programs go past it, and the owner hears what to do.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from hostmesh_agent import name_link, resolved, rights
from hostmesh_agent.dns import BACKUP_NAME, ROOTS_COPY, Resolver, ResolverError, ResolverState
from hostmesh_agent.mesh_names import MeshNames
from hostmesh_agent.repairs import Repairs

_NOT_SEEN_YET: Final = "no service has a name below the mesh's domain yet"
_PAST_RESOLVED: Final = (
    "programs read from resolv.conf which servers systemd-resolved asks, and ask those; have them ask it: "
    "ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf"
)
DANGLES_FOR_S: Final = 30.0
"""After which a link to a file that is not there is its owner's will: at boot the network writes it a moment later."""
_SHOWN: Final = 3
_CURES: Final = {
    "NetworkManager": "write dns=none into [main] of NetworkManager.conf, or let it use systemd-resolved",
    "dhclient-script": "make_resolv_conf() { :; } in /etc/dhcp/dhclient-enter-hooks.d/ has it leave the file alone",
    "dhcpcd": "write nohook resolv.conf into dhcpcd.conf",
    "resolvconf": "end it, or let it give the host's resolvers to systemd-resolved",
}
_ANY_CURE: Final = "have it leave the file alone, or use systemd-resolved"


class Resolution:
    """Name resolution of this host. Methods block for a moment on the disk and, rarely, on resolvectl."""

    def __init__(
        self,
        resolv_conf: Path,
        state_dir: Path,
        domains: tuple[str, ...] = (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nothing known.

        Args:
            resolv_conf: the resolver's file.
            state_dir: where a copy of it is kept.
            domains: what the host's owner wants to be asked of the mesh beside its own domain.
            now: a clock that only goes forward, in seconds.
        """
        self._resolver = Resolver(resolv_conf, state_dir)
        self._resolved = resolved.Resolved()
        self._domains = domains
        self._path = resolv_conf
        self._now = now
        self._repairs = Repairs()
        self._written = False
        self._dangles_since: float | None = None
        self.files: frozenset[Path] = frozenset()
        """What other programs write that `put` would put right or follow; nothing where nothing is put."""

    def put(self, names: MeshNames) -> ResolverState:
        """Have mesh names answered by Envoy, if they are not already; what another tool changed is put right.

        Raises:
            ResolverError: the file cannot be changed, or systemd-resolved not be told.
        """
        try:
            return self._put(names)
        finally:
            self.files = self._resolver.files()

    def _put(self, names: MeshNames) -> ResolverState:
        split = self._put_split(names)
        if self._resolver.names_uplink():
            failed = split.detail if split and not split.in_place else ""
            detail = "; ".join(filter(None, [failed, _PAST_RESOLVED]))
            return ResolverState(in_place=False, detail=detail, left_alone=not failed)
        if self._resolver.names_resolved():
            return split or ResolverState(in_place=False, detail=_absent())
        state = self._resolver.check()
        if self._dangles():
            return replace(state, left_alone=False)
        if not state.in_place and not state.left_alone:
            waits = self._rewritten() if self._written else ""
            if waits:
                return ResolverState(in_place=False, detail=waits)
            state = self._apply()
            self._written = state.in_place
        return replace(state, detail=state.detail or (split.detail if split else ""))

    def _dangles(self) -> bool:
        """Tell whether the file is a link to what is not there, and has not been for long."""
        if not self._path.is_symlink() or self._path.exists():
            self._dangles_since = None
            return False
        now = self._now()
        if self._dangles_since is None:
            self._dangles_since = now
        return now - self._dangles_since < DANGLES_FOR_S

    def _rewritten(self) -> str:
        """Note that another program wrote the file after us; return why it is not put right now, "" if it is."""
        now = self._now()
        wait_s = self._repairs.wait_s(now)
        if not wait_s:
            self._repairs.made(now)
            return ""
        writer = self._resolver.writer()
        return (
            f"{self._path} was put right {self._repairs.count(now)} times and is written again by "
            f"{writer or 'a program that does not name itself in it'}: the next time in {wait_s:.0f} s; "
            f"{_CURES.get(writer, _ANY_CURE)}"
        )

    def _put_split(self, names: MeshNames) -> ResolverState | None:
        """Tell systemd-resolved; None if it does not run."""
        if not resolved.runs():
            return None
        wanted = resolved.domains(names, self._domains)
        try:
            self._resolved.put(wanted)
        except resolved.ResolvedError as error:
            if self._resolver.names_resolved():
                raise ResolverError(str(error)) from error
            return ResolverState(in_place=False, detail=str(error))
        if not wanted:
            return ResolverState(in_place=True, detail=f"systemd-resolved: {_NOT_SEEN_YET}")
        return ResolverState(in_place=True, detail=_not_asked(names, self._domains))

    def in_place(self) -> bool:
        """Tell whether anybody on this host has been told of the mesh's names."""
        try:
            link = name_link.find()
        except name_link.LinkError:
            link = None
        return (link is not None and link.ours) or self._resolver.check().in_place

    def restore(self) -> None:
        """Take back all that was told and written. Needs no state; is done where we have never been.

        Raises:
            ResolverError: something could not be taken back; the rest was.
        """
        self._written = False
        self.files = frozenset()
        try:
            self._resolved.remove()
        except resolved.ResolvedError as error:
            self._take()
            raise ResolverError(str(error)) from error
        self._take()

    def _apply(self) -> ResolverState:
        def own() -> rights.Names:
            state = self._resolver.apply()
            return state.in_place, state.detail

        try:
            return ResolverState(*rights.here().put_names(self._path, own))
        except rights.RightsError as error:
            raise ResolverError(str(error)) from error

    def _take(self) -> None:
        here = rights.here()
        # Who helps is a process of root's each time, and this is done at every step.
        if here.helped and not self._resolver.holds_ours() and not os.path.lexists(ROOTS_COPY / BACKUP_NAME):
            return
        try:
            here.take_names(self._path, self._resolver.restore)
        except rights.RightsError as error:
            raise ResolverError(str(error)) from error


def take_back(resolv_conf: Path, state_dir: Path) -> None:
    """Take back all that an agent with these told and wrote, whether it is root or has been helped. For root.

    Raises:
        ResolverError: something could not be taken back; the rest was.
    """
    for kept in (ROOTS_COPY, state_dir):
        Resolution(resolv_conf, kept).restore()
    shutil.rmtree(ROOTS_COPY, ignore_errors=True)


def _absent() -> str:
    return "resolv.conf names systemd-resolved, which does not run"


def _not_asked(names: MeshNames, domains: tuple[str, ...]) -> str:
    """Return which names of the mesh systemd-resolved asks of others, and the cure; "" if there are none."""
    left = [name for name in names.outside if not any(name == each or name.endswith(f".{each}") for each in domains)]
    if not left:
        return ""
    shown = ", ".join(left[:_SHOWN]) + (f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else "")
    return f"systemd-resolved asks others about {shown}: list in dns.domains what the mesh alone is to be asked about"
