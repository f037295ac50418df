"""Capture and name resolution put into force together, in the order that loses nothing.

Widening: the rules, then the resolver, whose questions the rules carry. Narrowing: the other way round. Blocks on the
kernel and the disk for milliseconds: to be called from a thread.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from hostmesh_agent.capture import Capture, CaptureError, CaptureRequest, CaptureState, HostFloor, nft
from hostmesh_agent.converge import InForce, in_force
from hostmesh_agent.dns import Resolver, ResolverError

_UNKNOWN: Final = CaptureState("off")


@dataclass(frozen=True, slots=True)
class Enforced:
    """What is in force. `dns_in_place`: mesh names reach Envoy; `dns_detail` says why not."""

    capture: CaptureState = _UNKNOWN
    in_force: InForce = field(default_factory=InForce)
    dns_in_place: bool = False
    dns_detail: str = ""


class Enforcement:
    """What this agent does to the kernel and to resolv.conf. `dns` False: the host does not want the latter."""

    def __init__(self, *, dns: bool, resolv_conf: Path, state_dir: Path) -> None:
        self._dns = dns
        self._capture = Capture()
        self._resolver = Resolver(resolv_conf, state_dir)
        self._wanted: tuple[CaptureRequest, HostFloor] | None = None

    def look(self) -> InForce:
        """Return what the kernel captures now, whoever applied it.

        Raises:
            CaptureError: the kernel does not tell.
        """
        return in_force(nft.read())

    def put(self, request: CaptureRequest | None, floor: HostFloor) -> Enforced:
        """Put the request into force (None: nothing), if it is not already; errors are in what is returned."""
        if request is not None and not self._dns:
            request = replace(request, dns=False)
        dns = request is not None and request.dns
        detail = "" if dns else self._restore_dns()
        capture = self._clear() if request is None else self._apply(request, floor)
        in_place = False
        if dns and capture.state == "on":
            in_place, detail = self._apply_dns()
        return Enforced(capture, self._in_force(), in_place, detail)

    def _apply(self, request: CaptureRequest, floor: HostFloor) -> CaptureState:
        if self._wanted == (request, floor):
            state = self._capture.state()
            if state.state == "on":
                return state
        state = self._capture.apply(request, floor)
        self._wanted = (request, floor) if state.state == "on" else None
        return state

    def _clear(self) -> CaptureState:
        self._wanted = None
        state = self._capture.state()
        return state if state.state == "off" else self._capture.clear()

    def _in_force(self) -> InForce:
        try:
            return self.look()
        except CaptureError:
            return InForce()

    def _apply_dns(self) -> tuple[bool, str]:
        try:
            state = self._resolver.check()
            if not state.in_place:
                state = self._resolver.apply()
        except (ResolverError, OSError) as error:
            return False, str(error)
        return state.in_place, state.detail

    def _restore_dns(self) -> str:
        try:
            self._resolver.restore()
        except (ResolverError, OSError) as error:
            return str(error)
        return ""
