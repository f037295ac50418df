"""The files of a host's own /etc, as text: what an ordinary Debian host with a static address would have."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hostmesh_controller.lab.spawn import PROGRAMS

ENVOY_USER: Final = "hostmesh-envoy"
APP_USER: Final = "app"
_FIRST_ID: Final = 9915
# Ids that an ordinary user's lab maps: 0 and 65,536 subordinate ones.
_LAST_ID: Final = 65533


@dataclass(frozen=True, slots=True)
class Accounts:
    """Texts of passwd and group, and the ids they give to the lab's users."""

    passwd: str
    group: str
    ids: dict[str, int]


def accounts(passwd: str, group: str) -> Accounts:
    """Add the lab's users to the machine's, on ids that nobody has; users of these names are replaced."""
    ours = (ENVOY_USER, APP_USER)
    users = [line for line in passwd.splitlines() if line.split(":")[0] not in ours]
    groups = [line for line in group.splitlines() if line.split(":")[0] not in ours]
    taken = set(_ids(users)) | set(_ids(groups))
    free = (number for number in range(_FIRST_ID, _LAST_ID) if number not in taken)
    ids = {name: next(free) for name in ours}
    # No x in the second field: there is no line in shadow, and `su` must not look for one.
    users += [
        f"{ENVOY_USER}:*:{ids[ENVOY_USER]}:{ids[ENVOY_USER]}:hostmesh Envoy:/nonexistent:/usr/sbin/nologin",
        f"{APP_USER}:*:{ids[APP_USER]}:{ids[APP_USER]}:programs of the lab:{home(APP_USER)}:/bin/sh",
    ]
    groups += [f"{name}:*:{number}:" for name, number in ids.items()]
    return Accounts("\n".join(users) + "\n", "\n".join(groups) + "\n", ids)


def _ids(lines: Iterable[str]) -> Iterable[int]:
    for line in lines:
        fields = line.split(":")
        if len(fields) > 2 and fields[2].isdigit():
            yield int(fields[2])


def home(user: str) -> str:
    return f"/var/lib/{user}"


HOSTS: Final = """\
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
"""
"""The host's own name is not in it: a service may have that name, and this file would come before the mesh."""


def resolv_conf(gateway: str) -> str:
    """One resolver, as DHCP would give it; nobody answers there, and the refusal is immediate."""
    return f"# written by hostmesh lab\nnameserver {gateway}\n"


def agent_toml(*, envoy: bool) -> str:
    """The agent's config: its defaults, with Envoy where a user without rights in the checkout can run it."""
    binary = f'binary = "{PROGRAMS}/envoy"\n' if envoy else ""
    return f"# written by hostmesh lab\n[envoy]\n{binary}concurrency = 1\n"
