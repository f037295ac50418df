"""An agent that is root, on hosts where one that is not could not work: drop-ins for its units."""

from contextlib import suppress
from pathlib import Path
from typing import Final

from hostmesh_agent import own_unit, rights
from hostmesh_agent.capture import kernel
from hostmesh_agent.capture.rules import Backend
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.notify import UNIT, of_the_units

DROP_INS: Final = Path("/usr/lib/hostmesh-agent/as-root")
UNITS_OF_OWNER: Final = Path("/etc/systemd/system")
NAME: Final = "hostmesh-as-root.conf"
_ENVOYS_USER: Final = "hostmesh-envoy"


def why(config: AgentConfig) -> str:
    """Return why the agent of this host has to be root; "" if it has not. Blocks for a moment."""
    if config.envoy.supervisor == "builtin":
        return 'envoy.supervisor = "builtin" in agent.toml: Envoy is started as another user'
    if config.envoy.user != _ENVOYS_USER:
        return f"envoy.user in agent.toml is not {_ENVOYS_USER}: Envoy is started as another user"
    if config.dns.enabled and config.dns.resolv_conf != rights.RESOLV_CONF:
        return f"dns.resolv_conf in agent.toml is not {rights.RESOLV_CONF}"
    if kernel.backend(config.capture.backend) is Backend.IPTABLES:
        return "the rules are held by iptables, which is root's"
    return ""


def possible(state_dir: Path) -> bool:
    """Tell whether it is for these units to say as whom the agent runs."""
    return DROP_INS.is_dir() and of_the_units(state_dir)


def switch(on: bool, place: Path = UNITS_OF_OWNER, drop_ins: Path = DROP_INS, program: str = "systemctl") -> bool:
    """Have the agent be root from its next start on, or not; return whether that is another thing than before.

    Raises:
        OSError: the links cannot be made or removed.
        UnitError: it does not take them.
    """
    changed = False
    for drop_in in sorted(drop_ins.glob("*.service.conf")):
        link = place / f"{drop_in.stem}.d" / NAME
        if on and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(drop_in)
            changed = True
        elif not on and link.is_symlink():
            link.unlink()
            changed = True
        if not on:
            # Others may have put something there.
            with suppress(OSError):
                link.parent.rmdir()
    if changed:
        own_unit.call(program, "daemon-reload")
    return changed


def restart(program: str = "systemctl") -> None:
    """Restart the agent where it runs. Raises UnitError."""
    own_unit.call(program, "try-restart", "--", UNIT, within_s=own_unit.STARTS_WITHIN_S)
