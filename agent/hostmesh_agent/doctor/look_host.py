"""Looks at the agent, at its disk and at the kernel."""

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from hostmesh_agent import control, holders, life_file, lock, process, status
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.doctor.facts import AgentFacts, DiskFacts, KernelFacts
from hostmesh_agent.generation import generation

ANSWERS_WITHIN_S = 5.0


def look_agent(config: AgentConfig, now: datetime) -> AgentFacts:
    """Ask the agent; where it does not answer, its disk and the kernel are asked.

    Raises:
        PermissionError: only root may ask it.
    """
    if config.control_socket.exists() and not os.access(config.control_socket, os.W_OK):
        raise PermissionError(f"{config.control_socket}: only root may ask the agent")
    answers, listens = True, True
    try:
        document = control.call(config.control_socket, control.STATUS, ANSWERS_WITHIN_S)
    except control.ControlError as error:
        answers, listens = False, not isinstance(error, control.AgentAbsentError)
        document = status.offline(config, str(error), now)
    return AgentFacts(answers, listens, document, dict(_open_files(config)))


def _open_files(config: AgentConfig) -> Iterator[tuple[str, tuple[int, int]]]:
    pids = {f"agent (pid {pid})": pid for pid in holders.found(holders.holds_lock(config.state_dir / lock.FILE))}
    record = process.read_record(life_file.active_directory(config))
    if record is not None and record.runs():
        pids[f"Envoy (pid {record.pid})"] = record.pid
    for name, pid in pids.items():
        try:
            used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
            yield name, (used, int(limits.partition("Max open files")[2].split()[0]))
        except (OSError, ValueError, IndexError):
            continue


def look_disk(config: AgentConfig) -> DiskFacts | None:
    """Return how full the disk of the state directory is; None where there is no such directory."""
    try:
        found = os.statvfs(config.state_dir)
    except FileNotFoundError:
        return None
    return DiskFacts(
        free_bytes=found.f_bavail * found.f_frsize,
        total_bytes=found.f_blocks * found.f_frsize,
        free_inodes=found.f_favail,
        total_inodes=found.f_files,
        read_only=bool(found.f_flag & os.ST_RDONLY),
        open_directories=tuple(_open_directories(config)),
    )


def _open_directories(config: AgentConfig) -> Iterator[str]:
    for each in (config.state_dir, config.run_dir, config.state_dir / "identity"):
        try:
            info = each.stat()
        except OSError:
            continue
        if info.st_mode & 0o022:
            yield f"{each}: its mode is {info.st_mode & 0o7777:04o}"
        elif info.st_uid not in (0, os.geteuid()):
            yield f"{each}: it is uid {info.st_uid}'s"


def look_kernel() -> KernelFacts:
    """Return what the kernel can do, and how full its table of connections is."""
    release = [int(word) for word in os.uname().release.split("-")[0].split(".")[:2]]
    return KernelFacts(
        nf_tables=None if os.geteuid() else generation() is not None,
        release=(release[0], release[1]),
        cgroup_v2=any(" cgroup2 " in line for line in Path("/proc/self/mounts").read_text().splitlines()),
        connections=_number("nf_conntrack_count"),
        connections_max=_number("nf_conntrack_max"),
        dropped=_dropped(),
    )


def _number(name: str) -> int | None:
    try:
        return int(Path("/proc/sys/net/netfilter", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _dropped(path: Path = Path("/proc/net/stat/nf_conntrack")) -> int:
    """Return how many connections found no room, of all cores; 0 where none are tracked."""
    try:
        first, *lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return 0
    columns = [at for at, name in enumerate(first.split()) if name in {"drop", "early_drop"}]
    return sum(int(line.split()[at], 16) for line in lines for at in columns)
