"""Whether a change of the rules did harm, decided from what answered before it and what answers after it. Pure.

A controller that goes away by itself at that very moment must not undo a good change. So the controller is also asked
past the rules (as Envoy's user, whom they let pass): where that fails too, the rules are not why. Where the rules do
not let that pass, it proves nothing, and the change is taken to be the reason: a good change undone costs a `resume`,
a bad one kept may cost the host.
"""

from dataclasses import dataclass
from typing import Final

Endpoint = tuple[str, int]

TRIAL_EXPIRED: Final = "TRIAL_EXPIRED"
TRIAL_UNDONE: Final = "TRIAL_UNDONE"
"""Somebody wanted it."""
CONTROLLER_LOST: Final = "CONTROLLER_LOST"
SSH_LOST: Final = "SSH_LOST"
SSH_DIVERTED: Final = "SSH_DIVERTED"
DEADMAN_DIED: Final = "DEADMAN_DIED"


@dataclass(frozen=True, slots=True)
class Sound:
    """What answers at one moment, all by new connections.

    Attributes:
        ssh: where an SSH server answered, on this host's own addresses.
        ssh_silent: SSH ports where none did.
        controller: whether a controller took a TLS connection.
        past_rules: the same for a connection that the rules let pass; None where there is no such connection.
        diverted: SSH ports that the rules would take from a caller on the network.
        why: what the controller's connection failed with.
    """

    ssh: frozenset[Endpoint] = frozenset()
    ssh_silent: frozenset[int] = frozenset()
    controller: bool = False
    past_rules: bool | None = None
    diverted: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong: the alarm's name, and a sentence."""

    alarm: str
    why: str


def harm(before: Sound, after: Sound) -> tuple[Fault, ...]:
    """Return what a change broke, the worst first; nothing if it did no harm."""
    faults = [Fault(SSH_DIVERTED, each) for each in after.diverted if each not in before.diverted]
    if lost := sorted(before.ssh - after.ssh):
        where = ", ".join(f"{address} port {port}" for address, port in lost)
        faults.append(Fault(SSH_LOST, f"SSH answered at {where} before and does not now"))
    if before.controller and not after.controller and after.past_rules is not False:
        how = "answers past the rules" if after.past_rules else "was reachable before"
        faults.append(Fault(CONTROLLER_LOST, f"the controller {how} and not through them: {after.why}"))
    return tuple(faults)


def doubts(before: Sound, after: Sound, ssh_servers: frozenset[int]) -> tuple[Fault, ...]:
    """Return why the host is not provably fine: what a person's confirmation of a trial needs.

    `ssh_servers` are the ports where SSH servers are known to listen. One that was silent before the trial, too (it is
    installed and does not run), proves nothing against it.
    """
    faults = [Fault(SSH_DIVERTED, each) for each in after.diverted]
    faults += [
        Fault(SSH_LOST, f"no SSH server answers on port {port} of any address of this host")
        for port in sorted((after.ssh_silent - before.ssh_silent) & ssh_servers)
    ]
    if not after.controller:
        faults.append(Fault(CONTROLLER_LOST, f"no new connection to the controller: {after.why}"))
    return tuple(faults)
