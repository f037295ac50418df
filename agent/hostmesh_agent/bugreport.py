"""What a bug report tells of a host, and how it is gathered: without the agent's help, in bounded time, no secrets.

The agent's files are read as whom the agent is: root that reads them would follow links of others.

Private keys, the cache (it holds the keys of Gateways) and Envoy's whole configuration are not read into it. All that
is goes through `redaction`, which knows the secrets of this host.
"""

import asyncio
import json
import os
import platform
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from hostmesh_agent import capture, control, holders, host, standing_in, status, workdir
from hostmesh_agent.admin import Admin, AdminError
from hostmesh_agent.bootstrap import ADMIN_SOCKET
from hostmesh_agent.bundle import MAX_TEXT_BYTES, Bundle
from hostmesh_agent.cli_doctor import listed_findings
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.places import Instance
from hostmesh_agent.redaction import Redactor

WITHIN_S: Final = 60.0
COMMAND_WITHIN_S: Final = 8.0
ADMIN_WITHIN_S: Final = 4.0
MAX_SECRETS: Final = 4096
_MAX_LISTED: Final = 20_000
ADMIN: Final = ("server_info", "ready", "listeners?format=json", "clusters", "certs", "stats", "memory")
"""Not config_dump: it is the mesh's whole configuration, and its size has no bound."""
COMMANDS: Final = {
    "rules/nft.txt": "nft list ruleset",
    "rules/iptables.txt": "iptables-save",
    "rules/ip6tables.txt": "ip6tables-save",
    "routes/rule.txt": "ip rule",
    "routes/rule6.txt": "ip -6 rule",
    "routes/route.txt": "ip route show table all",
    "routes/route6.txt": "ip -6 route show table all",
    "routes/addr.txt": "ip addr",
    "routes/link.txt": "ip -d -s link",
    "sockets.txt": "ss -Htuanp",
    "names/resolvectl.txt": "resolvectl --no-pager status",
    "logs/agent.journal.txt": "journalctl --no-pager -q -n 5000 -o short-iso -u hostmesh-agent.service",
    "logs/kernel.journal.txt": "journalctl --no-pager -q -n 1000 -o short-iso -k",
}
FILES: Final = (
    Path("/etc/nsswitch.conf"),
    Path("/etc/os-release"),
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/systemd/resolve/stub-resolv.conf"),
    Path("/proc/version"),
    Path("/proc/meminfo"),
    Path("/proc/loadavg"),
    Path("/proc/self/mounts"),
    Path("/proc/net/netlink"),
    Path("/proc/net/stat/nf_conntrack"),
)


@dataclass(frozen=True, slots=True)
class Text:
    """One file of the report: its name, what makes it, whether its end counts more, and whether it takes root."""

    name: str
    make: Callable[[], str]
    end: bool = False
    as_root: bool = False


def write(config: AgentConfig, config_file: Path, bundle: Bundle, config_problem: str = "") -> int:
    """Put everything into the bundle; return in how many places something was hidden. What fails says so inside.

    `config_problem` is why the file is refused; "" if it is not.
    """
    until = time.monotonic() + WITHIN_S
    with standing_in.for_a_while(config.state_dir, able=True):
        redactor = Redactor(secrets(config))
    told = []
    for text in texts(config, config_file, config_problem):
        began = time.monotonic()
        if began > until:
            told.append(f"{text.name}: left out, {WITHIN_S:g} s are over")
            continue
        try:
            with nullcontext() if text.as_root else standing_in.for_a_while(config.state_dir, able=True):
                made = text.make()
        except Exception as error:
            made = f"{type(error).__name__}: {error}\n"
        # Cut before it is searched: what is hidden may not be what the end of a part depends on.
        part = made[-MAX_TEXT_BYTES:] if text.end else made[:MAX_TEXT_BYTES]
        left_out = len(made) - len(part) + bundle.add(text.name, redactor.clean(part), end=text.end)
        cut = f", {left_out} more left out" if left_out else ""
        told.append(f"{text.name}: {len(part)} characters{cut}, {time.monotonic() - began:.1f} s")
    told.append(f"hidden in {redactor.count} places; private keys, the cache and Envoy's configuration are not here")
    bundle.add("contents.txt", "\n".join(told) + "\n")
    return redactor.count


def secrets(config: AgentConfig) -> Iterator[bytes]:
    """Yield what no report may hold: every private key below the state directory, and tokens that tell themselves."""
    found = 0
    for directory, names, files in os.walk(config.state_dir):
        names[:] = [each for each in names if each not in {"envoy-bin", "cache"}]
        for name in files:
            if not name.endswith((".pem", ".key")) or found >= MAX_SECRETS:
                continue
            with suppress(OSError):
                data = _start_of(Path(directory, name), 1 << 16)
                if b"PRIVATE KEY" in data:
                    found += 1
                    yield data


def texts(config: AgentConfig, config_file: Path, config_problem: str = "") -> Iterator[Text]:
    """Yield what is told, the most telling first."""
    yield Text("versions.txt", _versions)
    yield Text("status.json", lambda: _status(config))
    yield Text("doctor.json", lambda: json.dumps(listed_findings(config, config_problem), indent=1))
    yield Text("config/agent.toml", lambda: _read(config_file))
    yield Text("rules/hostmesh.txt", capture.show)
    for directory in _envoy_directories(config):
        yield from _envoy(directory)
    for name, command in COMMANDS.items():
        yield Text(name, partial(_output, command.split()), name.startswith("logs/"), as_root=True)
    for path in (config.dns.resolv_conf, *FILES):
        yield Text(f"files{path}", partial(_read, path))
    yield Text("state-directory.txt", lambda: "\n".join(_listed(config)) + "\n")
    yield Text("processes.txt", lambda: "\n".join(_processes()) + "\n")


def _envoy_directories(config: AgentConfig) -> list[Path]:
    """Return Envoys' working directories: there may be two while one takes over from the other."""
    return [each for each in map(config.directory_of, Instance) if each.is_dir()]


def _envoy(directory: Path) -> Iterator[Text]:
    name = f"envoy/{directory.name}"
    yield Text(f"{name}/bootstrap.json", lambda: _read(directory / workdir.BOOTSTRAP))
    for log in (workdir.LOG, f"{workdir.LOG}.1"):
        yield Text(f"{name}/{log}", partial(_read, directory / log, end=True), end=True)
    silent: list[str] = []

    def ask(target: str) -> str:
        # One that hangs is asked once, not seven times.
        if not silent:
            try:
                return asyncio.run(Admin(directory / ADMIN_SOCKET, ADMIN_WITHIN_S).request("GET", f"/{target}"))[
                    1
                ].decode("utf-8", "replace")
            except AdminError as error:
                silent.append(str(error))
        return f"not asked, as it did not answer: {silent[0]}\n"

    for target in ADMIN:
        yield Text(f"{name}/{target.partition('?')[0]}.txt", partial(ask, target))


def _versions() -> str:
    found = {
        "hostmesh-agent": host.agent_version(),
        "python": platform.python_version(),
        "kernel": " ".join(os.uname()),
        "libc": " ".join(platform.libc_ver()),
        "time": datetime.now(UTC).isoformat(),
        "uid": os.geteuid(),
    }
    return "".join(f"{name}: {value}\n" for name, value in found.items())


def _status(config: AgentConfig) -> str:
    try:
        found = control.call(config.control_socket, control.STATUS, COMMAND_WITHIN_S)
    except control.ControlError as error:
        found = status.offline(config, str(error), datetime.now(UTC))
    return json.dumps(found, indent=1)


def _output(words: list[str]) -> str:
    program = shutil.which(words[0])
    if program is None:
        return f"there is no {words[0]}\n"
    try:
        done = subprocess.run(
            [program, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_WITHIN_S,
            check=False,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {COMMAND_WITHIN_S:g} s\n"
    return done.stdout.decode("utf-8", "replace")


def _read(path: Path, *, end: bool = False) -> str:
    """Return a plain file's text, or why there is none; a link is told and followed."""
    link = f"# a link to {path.readlink()}\n" if path.is_symlink() else ""
    try:
        return link + _start_of(path, MAX_TEXT_BYTES, end=end).decode("utf-8", "replace")
    except OSError as error:
        return f"{link}{error.strerror}\n"


def _start_of(path: Path, most_bytes: int, *, end: bool = False) -> bytes:
    # Not to wait for a pipe that lies where a file should be.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is no plain file")
        if end:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
        return file.read(most_bytes)


def _listed(config: AgentConfig) -> Iterator[str]:
    """Yield what is in the agent's directories: modes, owners, sizes, times, names. Never what is inside."""
    paths = [path for top in (config.state_dir, config.run_dir) for path in (top, *sorted(top.rglob("*")))]
    for path in paths[:_MAX_LISTED]:
        with suppress(OSError):
            info = path.lstat()
            at = datetime.fromtimestamp(info.st_mtime, UTC).isoformat(timespec="seconds")
            yield f"{stat.filemode(info.st_mode)} {info.st_uid}:{info.st_gid} {info.st_size} {at} {path}"


def _processes() -> Iterator[str]:
    """Yield ours and Envoys: others' command lines are nobody's business."""
    for pid in holders.pids():
        words = holders.words(pid)
        if words and (holders.is_agent(words) or "envoy" in words[0]):
            yield f"{pid} {' '.join(words)}"
