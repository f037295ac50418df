"""Print all that hostmesh could change on this host, as JSON: name of the thing -> its state. Standard library only.

What changes by itself is not in it: counters, times that run down, this program.
"""

import hashlib
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

COMMANDS = (
    "nft list ruleset",
    "iptables-save",
    "ip6tables-save",
    "ip -4 rule",
    "ip -6 rule",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "ip addr",
    "ip -d link",
)
MOVING = re.compile(r"(expires \d+sec|valid_lft \S+|preferred_lft \S+|\[\d+:\d+\]|^#.*$)", re.MULTILINE)
ITSELF = re.compile(
    r"ns_last_pid|/random/|/quota/|_nr$|-nr$|-state$|conntrack_count|/pty/|boot_id|uuid|route/.*gc_|free_|max_lb"
)
"""Settings that are no settings."""
TREES = ("/run", "/dev/shm")
"""Of /etc and /var/lib the test sees what the host has written, from outside."""


def main() -> None:
    found: dict[str, str] = {}
    found |= {command: shown(command) for command in COMMANDS}
    found |= dict(settings())
    found |= {f"file {path}": state for tree in TREES for path, state in files(Path(tree))}
    found |= {"processes": "\n".join(sorted(processes())), "sockets": "\n".join(sorted(sockets()))}
    found |= {f"cgroup {path}": "nobody is in it" for path in cgroups()}
    print(json.dumps(found))


def shown(command: str) -> str:
    try:
        done = subprocess.run(command.split(), capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return "no such program"
    return MOVING.sub("", done.stdout)


def settings() -> Iterator[tuple[str, str]]:
    for directory, _, names in os.walk("/proc/sys"):
        for name in names:
            path = Path(directory, name)
            if not ITSELF.search(str(path)):
                try:
                    yield str(path), path.read_text(encoding="latin-1")
                except OSError:
                    continue


def files(tree: Path) -> Iterator[tuple[str, str]]:
    for directory, names, leaves in os.walk(tree):
        for path in (Path(directory, each) for each in (*names, *leaves)):
            try:
                yield str(path), told(path)
            except FileNotFoundError:
                continue


def told(path: Path) -> str:
    info = path.lstat()
    kind = stat.S_IFMT(info.st_mode)
    text = f"{kind:o} {stat.S_IMODE(info.st_mode):04o} {info.st_uid}:{info.st_gid}"
    if kind == stat.S_IFLNK:
        return f"{text} -> {path.readlink()}"
    if kind != stat.S_IFREG:
        return text
    return f"{text} {info.st_size} {hashlib.sha256(path.read_bytes()).hexdigest()} {labels(path)}"


def labels(path: Path) -> list[tuple[str, str]]:
    # Overlayfs's own say how it keeps a file, not what the file is.
    try:
        return [(each, os.getxattr(path, each).hex()) for each in os.listxattr(path) if ".overlay." not in each]
    except OSError:
        return []


def processes() -> Iterator[str]:
    above = {os.getpid(), os.getppid()}
    for each in Path("/proc").iterdir():
        if each.name.isdigit() and int(each.name) not in above:
            try:
                yield (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue


def sockets() -> Iterator[str]:
    for name in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if not name.startswith("tcp") or fields[3] == "0A":
                yield f"{name} {fields[1]}"
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        if len(fields := line.split()) > 7:
            yield f"unix {fields[7]}"


def cgroups() -> Iterator[str]:
    """Yield those of ours that nobody is in: hosts of a lab share the machine's, and others' Envoys are in some."""
    for directory, names, files in os.walk("/sys/fs/cgroup"):
        ours = "/hostmesh.slice" in directory and "cgroup.events" in files
        if ours and "populated 0" in Path(directory, "cgroup.events").read_text():
            yield directory
        names[:] = [each for each in names if not each.startswith("docker")]


main()
