"""What others do to the kernel's rules."""

import time
from typing import Final

from e2e.driver import eventually
from faults.fault import Fault, PromiseBrokenError
from faults.scene import CLIENT, HTTP_PORT, MESH, OUTSIDE, SERVER, Scene
from faults.seen import Bounds

_FLUSHES: Final = 10
DEBIANS: Final = """\
flush ruleset
table inet filter {
  chain input { type filter hook input priority filter; }
  chain forward { type filter hook forward priority filter; }
  chain output { type filter hook output priority filter; }
}
"""
"""/etc/nftables.conf as Debian ships it: what `systemctl reload nftables` loads."""
FIREWALLDS: Final = """\
table inet firewalld {}
delete table inet firewalld
table inet firewalld {
  chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10; }
  chain nat_PREROUTING { type nat hook prerouting priority dstnat + 10; }
  chain nat_POSTROUTING { type nat hook postrouting priority srcnat + 10; }
  chain nat_OUTPUT { type nat hook output priority -90; }
  chain filter_PREROUTING { type filter hook prerouting priority filter + 10; }
  chain filter_INPUT {
    type filter hook input priority filter + 10;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    tcp dport { 22, 8301, 8302, 8303, 8304 } accept
    udp dport 8399 accept
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD { type filter hook forward priority filter + 10; reject with icmpx admin-prohibited; }
  chain filter_OUTPUT { type filter hook output priority filter + 10; ct state { established, related } accept; }
}
"""
"""The chains that firewalld 2 makes with its nftables back end, a zone that lets SSH and the programs' own ports in,
and nothing of ours: they are loaded, as a reload does, in one transaction."""


def flushed(scene: Scene) -> str:
    for _ in range(_FLUSHES):
        for host in MESH:
            scene.space(host).run(["nft", "flush", "ruleset"])
    _ours_is_there(scene)
    return f"{_FLUSHES} times on every host"


def flushed_without_agents(scene: Scene) -> str:
    """The same while no agent lives: the rules have no owner then, and whoever is root may take them away."""
    for host in (CLIENT, SERVER):
        scene.kill(f"agent/{host}")
        scene.run(host, "nft", "flush", "ruleset")
    began_s = time.monotonic()
    for host in (CLIENT, SERVER):
        scene.start(f"agent/{host}")
    _ours_is_there(scene)
    took_s = time.monotonic() - began_s
    scene.wait_for_calls()
    return f"the rules of both hosts are there {took_s:.1f} s after their agents were started"


def nftables_reloaded(scene: Scene) -> str:
    for host in MESH:
        for _ in range(5):
            scene.space(host).run(["nft", "-f", "-"], text_in=DEBIANS)
    _ours_is_there(scene)
    return "5 reloads on every host"


def firewalld_reloaded(scene: Scene) -> str:
    for host in MESH:
        for _ in range(5):
            scene.run(host, "nft", "-f", "-", text_in=FIREWALLDS)
    _ours_is_there(scene)
    return "5 reloads on every host"


def foreign_behind_ours(scene: Scene) -> str:
    """A DNAT of somebody else on the program's port, where Docker has its own: ours comes before it."""
    _foreign(scene, -100)
    if _plaintext_answered(scene):
        raise PromiseBrokenError("plaintext reached the program of a STRICT port")
    scene.wait_for_calls()
    without_foreign(scene)
    return "plaintext from outside is refused all the while"


def foreign_before_ours(scene: Scene) -> str:
    """The same before ours: the kernel lets the first decide, and Envoy is not asked."""
    _foreign(scene, -150)
    reached = _plaintext_answered(scene)
    said = eventually(lambda: _named(scene, SERVER, "foreign"), "the agent's status or doctor names the table", 15)
    reached |= _plaintext_answered(scene)
    without_foreign(scene)
    if reached:
        raise PromiseBrokenError("plaintext reached the program of a STRICT port")
    return f"plaintext from outside is refused all the while; said: {said}"


def _foreign(scene: Scene, priority: int) -> None:
    chain = f"type nat hook prerouting priority {priority}; tcp dport {HTTP_PORT} redirect to :{HTTP_PORT};"
    scene.run(SERVER, "nft", "-f", "-", text_in=f"table ip foreign {{\nchain pre {{ {chain} }}\n}}\n")


def _plaintext_answered(scene: Scene) -> bool:
    url = f"http://{scene.ip(SERVER)}:{HTTP_PORT}/"
    return scene.space(OUTSIDE).run(["curl", "-s", "-m", "3", "-o", "/dev/null", url]).returncode == 0


def _named(scene: Scene, host: str, name: str) -> str:
    lines = [*scene.agent(host).get("problems", [])]
    # Doctor's exit code tells that there are findings.
    lines += scene.space(host).run(["hostmesh-agent", "doctor"]).stdout.splitlines()
    return next((each.strip() for each in lines if name in each), "")


def without_foreign(scene: Scene) -> None:
    scene.space(SERVER).run(["nft", "delete", "table", "ip", "foreign"])


def without_strangers(scene: Scene) -> None:
    for host in MESH:
        for table in ("filter", "firewalld"):
            scene.space(host).run(["nft", "delete", "table", "inet", table])


def _ours_is_there(scene: Scene) -> None:
    for host in MESH:
        if scene.space(host).run(["nft", "list", "table", "inet", "hostmesh"]).returncode:
            raise PromiseBrokenError(f"the rules of {host} are gone")


RULESETS: Final = (
    Fault(
        "nft-flush",
        "`nft flush ruleset`, 10 times on every host",
        "The rules stay (Linux 6.9), no call fails, no plaintext.",
        flushed,
    ),
    Fault(
        "nft-flush-no-agent",
        "`nft flush ruleset` while the agents are dead",
        "They go, as an owner's last way out must; nothing is captured then. Each agent puts them back at its start; "
        "calls succeed again within 15 s.",
        flushed_without_agents,
        Bounds(gap_s=15, gaps=2, late=60, rules_gap_s={CLIENT: 10, SERVER: 10}, plaintext=True),
    ),
    Fault(
        "nftables-reload",
        "Debian's nftables.conf, `flush ruleset` first, loaded 5 times on every host",
        "Our rules stay, theirs are there too, no call fails.",
        nftables_reloaded,
        mend=without_strangers,
    ),
    Fault(
        "firewalld-reload",
        "the chains of firewalld's nftables back end, which let in SSH and the programs' own ports, loaded 5 times on "
        "every host (the reload's transaction; not the daemon)",
        "Captured connections pass where the program's port is let in; no call fails.",
        firewalld_reloaded,
        mend=without_strangers,
    ),
    Fault(
        "foreign-dnat",
        "somebody's DNAT on a STRICT port of the callee, at the priority of Docker's",
        "Ours comes first: no call fails, plaintext does not reach the program.",
        foreign_behind_ours,
        mend=without_foreign,
    ),
    Fault(
        "foreign-chain-first",
        "somebody's nat chain that comes before ours takes a STRICT port of the callee to its program",
        "STRICT is kept: plaintext does not reach the program. It is named (`status` or `doctor`) within 15 s; new "
        "connections to that port fail meanwhile; without it all is well again.",
        foreign_before_ours,
        Bounds(gap_s=60, gaps=2, late=500),
        mend=without_foreign,
    ),
)
