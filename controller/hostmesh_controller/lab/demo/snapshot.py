"""What a host has that a mesh could have changed, to be compared before joining and after leaving."""

from dataclasses import dataclass
from typing import Final, Self

from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.space import Space

_QUESTIONS: Final = {
    "nft list ruleset": ["nft", "list", "ruleset"],
    "resolver files": [
        "sh",
        "-c",
        "cd /etc && stat -c '%n %F %a %u %g %s' resolv.conf hosts nsswitch.conf host.conf 2>&1",
    ],
    "/etc/resolv.conf": ["cat", "/etc/resolv.conf"],
    "/etc/hosts": ["cat", "/etc/hosts"],
    "/etc/nsswitch.conf": ["sh", "-c", "cat /etc/nsswitch.conf 2>&1"],
    "addresses": ["ip", "-br", "address"],
    "routes": ["ip", "route", "show", "table", "all"],
    "IPv6 routes": ["ip", "-6", "route", "show", "table", "all"],
    "rules of routing": ["ip", "rule"],
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The answers to the questions, by question."""

    answers: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, host: Space) -> Self:
        return cls(tuple((name, _ask(host, command)) for name, command in _QUESTIONS.items()))


def _ask(host: Space, command: list[str]) -> str:
    done = host.run(command)
    if done.returncode != 0 and command[0] != "sh":
        raise LabError(f"{host.name}: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def difference(before: Snapshot, after: Snapshot) -> str:
    """Say what changed, for people; "" when nothing did."""
    then, now = dict(before.answers), dict(after.answers)
    return "\n".join(
        f"{name}, before:\n{then[name] or '(nothing)'}\nafter:\n{now[name] or '(nothing)'}"
        for name in then
        if then[name] != now[name]
    )
