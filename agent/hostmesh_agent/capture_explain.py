"""What the kernel's rules do with one connection: the facts about it, gathered here, and the answer in words."""

import ipaddress
import os
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hostmesh_agent import cgroup
from hostmesh_agent.capture import CaptureError, Table
from hostmesh_agent.capture.interpret import LOOPBACK, Address, Packet, Verdict, verdict
from hostmesh_agent.capture.rules import ChangeDestination, Hook
from hostmesh_agent.capture.text import rule_text
from hostmesh_agent.places import GREEN, PORTS
from hostmesh_api import wire

_CALLER: Final = {4: "192.0.2.1", 6: "2001:db8::1"}
"""A caller on the network whom we know nothing of (RFC 5737, RFC 3849)."""
_A_CARD: Final = 2  # index of any interface but loopback's
_WITHIN_S: Final = 5.0


class QuestionError(ValueError):
    """What was asked about is no such thing."""


def destination(text: str) -> tuple[Address, int]:
    """Read ADDRESS:PORT, an IPv6 address in brackets. Raises QuestionError."""
    host, colon, port = text.rpartition(":")
    try:
        if not colon or not 0 < int(port) <= 65535:
            raise ValueError
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")), int(port)
    except ValueError:
        raise QuestionError(f"{text!r} is not ADDRESS:PORT (an IPv6 address in brackets: [2001:db8::1]:443)") from None


def caller(text: str | None) -> Address | None:
    """Read the address of who calls. Raises QuestionError."""
    try:
        return ipaddress.ip_address(text) if text else None
    except ValueError:
        raise QuestionError(f"{text!r} is not an IP address") from None


@dataclass(frozen=True, slots=True)
class Program:
    """Who connects. `cgroups`: numbers of its cgroups, from the first below the root down; none: not known."""

    uid: int
    cgroups: tuple[int, ...] = ()


def unit(name: str, systemctl: str = "systemctl") -> Program:
    """Return as whom and in which cgroups a systemd unit's main process runs; of a slice or scope, any process of it.

    Raises:
        QuestionError: systemd has no such unit.
        CaptureError: it has no process, so nobody can tell what holds for it; or systemd does not tell.
    """
    try:
        done = subprocess.run(
            [systemctl, "show", "-p", "MainPID", "-p", "ControlGroup", "-p", "LoadState", "--", name],
            capture_output=True,
            text=True,
            timeout=_WITHIN_S,
            check=False,
        )
        told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        pid = int(told.get("MainPID") or 0) or _any_process(told.get("ControlGroup", ""))
        if pid:
            return program(pid)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise CaptureError(f"systemd does not tell of unit {name}: {error}") from None
    if told.get("LoadState") == "not-found":
        raise QuestionError(f"systemd knows no unit {name}")
    raise CaptureError(
        f"unit {name} does not run, and rules know a unit by its processes: start it, or say --uid of the user that it "
        "runs as, which tells what holds where no rule names the unit"
    )


def _any_process(control_group: str) -> int:
    """Return the lowest number of a process in a cgroup or below it; 0 if there is none, or no cgroup v2."""
    root, below = cgroup.root(), control_group.strip("/")
    if root is None or not below:
        return 0
    found = [int(pid) for file in (root / below).rglob(cgroup.PROCESSES) for pid in file.read_text().split()]
    return min(found, default=0)


def program(pid: int) -> Program:
    """Return as whom and in which cgroups a process runs. Raises OSError: there is none."""
    return Program(Path(f"/proc/{pid}").stat().st_uid, _cgroups(pid))


def _cgroups(pid: int) -> tuple[int, ...]:
    lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii", errors="replace").splitlines()
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::")), "")
    place, found = cgroup.root(), list[int]()
    if place is None:
        return ()
    for part in path.split("/") if path else ():
        place = place / part
        found.append(place.stat().st_ino)
    return tuple(found)


def outgoing(address: Address, port: int, program: Program) -> Packet:
    """Return the first packet of a program's connection, with the source and the interface the kernel would choose."""
    source, interface = _way_to(address, port)
    return Packet(
        Hook.OUTPUT,
        source,
        address,
        port,
        uid=program.uid,
        output_interface=interface,
        output_interface_name=socket.if_indextoname(interface) if interface else "",
        cgroups=program.cgroups,
        local=_is_local(address),
    )


def incoming(address: Address, port: int, interface: str = "", caller: Address | None = None) -> Packet:
    """Return the first packet of a connection from the network.

    Args:
        address: of this host, that is called.
        port: that is called.
        interface: where it comes in; "": the one that has the address.
        caller: its address; None: somebody of whom nothing is known.

    Raises:
        QuestionError: there is no such interface, or the caller has an address of the other family.
    """
    caller = caller or ipaddress.ip_address(_CALLER[address.version])
    if caller.version != address.version:
        raise QuestionError(f"{caller} cannot call {address}: one is IPv4 and one is IPv6")
    try:
        index = socket.if_nametoindex(interface) if interface else _interface_of(address)
        name = interface or socket.if_indextoname(index)
    except OSError:
        if interface:
            raise QuestionError(f"this host has no interface {interface}") from None
        index, name = _A_CARD, ""
    return Packet(
        Hook.PREROUTING,
        caller,
        address,
        port,
        input_interface=index,
        input_interface_name=name,
        local=_is_local(address),
    )


def document(table: Table | None, packet: Packet) -> dict[str, Any]:
    """Return the answer: which rule decides, and where the connection goes."""
    found = verdict(table, packet)
    if found.action == "unknown":
        rule = found.rule
        why = rule_text(rule) if rule is not None else f"the policy of chain {found.chain}"
        raise CaptureError(f"chain {found.chain} holds what is not understood: {why}")
    return {
        "direction": "outbound" if packet.hook == Hook.OUTPUT else "inbound",
        "to": f"{packet.destination} port {packet.port}",
        "uid": packet.uid,
        "captured": found.touched,
        "chain": found.chain,
        "rule_number": found.number or None,
        "rule": rule_text(found.rule) if found.rule is not None else "",
        "identity": _identity(found),
        "goes_to": _goes_to(packet, found),
    }


def text(answer: dict[str, Any]) -> str:
    """Return the answer for human eyes."""
    by = f"as uid {answer['uid']}, " if answer["uid"] is not None else ""
    decides = (
        f"rule {answer['rule_number']} of chain {answer['chain']}: {answer['rule']}"
        if answer["rule_number"]
        else "no rule of capture is about it"
    )
    return f"{answer['direction']}, {by}to {answer['to']}\n  decides: {decides}\n  goes to: {answer['goes_to']}"


def _identity(found: Verdict) -> str:
    """Return as whom the program calls, where the rules tell it apart from the host's other programs; else ""."""
    rule = found.rule
    own = rule is not None and any(isinstance(each, ChangeDestination) for each in rule.expressions)
    # Others are led to an address of their own, too: in IPv6 there is one of loopback alone.
    return rule.comment if rule is not None and own and rule.comment.startswith("spiffe://") else ""


_LISTENERS: Final = {
    **{ports.outbound: "outbound" for ports in PORTS.values()},
    **{ports.inbound: "inbound" for ports in PORTS.values()},
    **{ports.dns: "names" for ports in PORTS.values()},
    **{ports.door: "what it listens on itself" for ports in PORTS.values() if ports.door is not None},
    wire.DNS_TCP_PORT: "",
}


def _goes_to(packet: Packet, found: Verdict) -> str:
    if found.action == "refuse":
        return "nowhere: it is refused at once"
    if not found.touched:
        return f"{packet.destination} port {packet.port}, as if there were no capture"
    kind = _LISTENERS.get(found.port or 0, "of its own")
    listener = f"{_whose(found.port)} listener ({kind})" if kind else "the agent (names over TCP)"
    where = packet.destination if found.action == "change port" else "this host"
    served = _listening(found.port or 0)
    as_whom = f", as {identity}" if (identity := _identity(found)) else ""
    return f"{listener} at {where} port {found.port}{as_whom}" + ("" if served else "; nobody listens there now")


def _whose(port: int | None) -> str:
    second = PORTS[GREEN]
    return "the second Envoy's" if port in {second.outbound, second.inbound, second.dns, second.door} else "Envoy's"


def _listening(port: int) -> bool:
    import psutil

    with suppress(psutil.Error, OSError):
        return any(
            each.laddr and each.laddr.port == port and each.status in {psutil.CONN_LISTEN, psutil.CONN_NONE}
            for each in psutil.net_connections("inet")
        )
    return True


def _is_local(address: Address) -> bool:
    """Whether the kernel calls the address its own: only then can a socket be bound to it."""
    if address.is_loopback:
        return True
    with socket.socket(_family(address), socket.SOCK_DGRAM) as asked:
        try:
            asked.bind((str(address), 0))
        except OSError:
            return False
    return not address.is_multicast and not address.is_unspecified


def _way_to(address: Address, port: int) -> tuple[Address, int]:
    """Return source address and interface of a packet to the address: nothing is sent."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as asked:
        try:
            asked.connect((str(address), port))
        except OSError as error:
            raise CaptureError(f"the host has no route to {address}: {os.strerror(error.errno or 0)}") from error
        source = ipaddress.ip_address(asked.getsockname()[0].partition("%")[0])
    if source.is_loopback or _is_local(address):
        return source, LOOPBACK
    return source, _interface_of(source)


def _interface_of(source: Address) -> int:
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == str(source) for each in addresses):
            return socket.if_nametoindex(name)
    return _A_CARD


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
