"""Who is who on this host, for the rules: Envoy, and the programs that call under an identity of their own."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any, Final

import structlog

from hostmesh_agent import cgroup, process, rights
from hostmesh_agent.capture import Caller, CaptureError, HostFloor, kernel, nft
from hostmesh_agent.capture.callers import envoy_in
from hostmesh_agent.capture.who import Match, Present
from hostmesh_agent.cgroup import EnvoyGroup
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.own_callers import OwnCallers
from hostmesh_agent.places import Instance
from hostmesh_agent.programs import Programs
from hostmesh_api.v1.hostmesh_pb2 import HostConfig
from hostmesh_api.wire import ENVOY_SLICES

_NOT_ROOT: Final = "Envoy runs as the agent's own user"

log = structlog.get_logger(__name__)


class Recognition:
    """Everything that rules tell programs by. Methods that look block for a moment.

    Args:
        config: of the host.
        switches_user: whether Envoy runs as another user than the agent.
    """

    def __init__(self, config: AgentConfig, *, switches_user: bool) -> None:
        root, why_not = cgroup.usable()
        why_not = why_not or ("" if nft.knows_cgroups() else "the kernel has no such match (module nft_socket)")
        self.group = EnvoyGroup(root, why_not or ("" if switches_user else _NOT_ROOT), makes=not rights.here().helped)
        self._root = root
        self._own = OwnCallers(config.workloads, why_not)
        self._user = config.envoy.user
        self._found: tuple[Caller, ...] = ()
        try:
            self.group.in_force = envoy_in(kernel.read())
        except CaptureError as error:
            log.error("the rules that are there cannot be read", reason=str(error))
        for instance in Instance:
            running = process.read_record(config.directory_of(instance))
            if running is not None and running.runs() and not self.group.admit(running.pid, instance.value):
                log.warning("envoy is known by its user", reason=self.group.why_not)

    def floor(self, floor: HostFloor) -> HostFloor:
        """Return the floor with what Envoy is known by now.

        Raises:
            CaptureError: Envoy's cgroup is gone and cannot be made again.
        """
        try:
            return replace(floor, envoy_cgroup=self.group.current())
        except OSError as error:
            raise CaptureError(f"Envoy's cgroup cannot be made: {error}") from error

    @property
    def named(self) -> Match:
        """The programs whose presence has to be known for `callers`."""
        return self._own.named

    def programs(self, changed: Callable[[], None]) -> Programs:
        """Return what finds programs on this host; `changed` is called when one may have come or gone."""
        return Programs(changed, self._root)

    def callers(self, config: HostConfig, certificates: Collection[str], present: Present) -> tuple[Caller, ...]:
        """Return the programs whose identity Envoy can show; the others call as the host's programs do."""
        here = frozenset(config.outbound_identities) & frozenset(certificates)
        self._found = self._own.among(present, here, config.trust_domain)
        return self._found

    def problems(self, config: HostConfig | None) -> Iterator[str]:
        """Yield what the owner asks for and cannot have."""
        if config is not None:
            yield from self._own.problems(config.outbound_identities, config.trust_domain)

    def status(self) -> dict[str, Any]:
        """Return what the owner of the host is told."""
        why = self.group.why_not
        by = f"its user {self._user}: {why}" if why else f"its cgroup {'/'.join(ENVOY_SLICES)}"
        return {
            "envoy_known_by": by,
            "callers": [
                {"spiffe_id": each.spiffe_id, "uids": sorted(each.uids), "cgroups": len(each.cgroups)}
                for each in self._found
            ],
        }
