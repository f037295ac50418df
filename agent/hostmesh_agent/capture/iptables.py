"""The edge to iptables and ipset, where the kernel has no nf_tables: write the table, read it back, remove it.

No state is kept: chains and sets whose names begin with HOSTMESH_ are ours, and jumps to them. The programs must be
those of the older interface (on Debian `iptables-legacy`): the newer ones speak to nf_tables.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from hostmesh_agent.capture import xt_text
from hostmesh_agent.capture.errors import CaptureError
from hostmesh_agent.capture.rules import NamedSet, SocketCgroup, Table
from hostmesh_agent.capture.xt_words import PREFIX, Paths
from hostmesh_agent.capture.xtables import UntranslatableError

_WITHIN_S: Final = 30.0
_LOCK_S: Final = 5
"""How long another program's change is waited for."""
_TRIES: Final = 3
_SEARCHED: Final = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"
_PREFIX_OF: Final = {4: "ip", 6: "ip6"}
_CGROUPS: Final = Path("/sys/fs/cgroup")
_CGROUP_IN_COMMENT: Final = re.compile(r'"cgroup \d+@\d+')


def in_use() -> bool:
    """Tell whether rules of iptables' older interface are loaded here and there are the programs for them.

    Where those are missing, the rules are somebody else's: of a container that brought its own.
    """
    return any(_loaded(version) and _found(version, "save") for version in _PREFIX_OF)


def read() -> Table | None:
    """Return what of ours is in the kernel, None if nothing.

    Raises:
        CaptureError: the programs are missing or refuse.
    """
    return _read().table()


def write(table: Table) -> Table | None:
    """Make the kernel hold `table`, from whatever it holds; return what it holds then.

    Raises:
        CaptureError: the kernel refused, or some program is missing. What is in force is what was, or what is wanted,
            in each family and in each set.
    """
    paths = _paths() if _names_cgroups(table) else {}
    try:
        for _ in range(_TRIES):
            kernel = _read(paths)
            if kernel.table() == table:
                break
            _change(kernel, table, paths)
    except (UntranslatableError, ValueError) as error:
        raise CaptureError(f"could not write the capture rules: {error}") from error
    return _read(paths).table()


def remove() -> None:
    """Remove what of ours is in the kernel. No error if there is nothing.

    Raises:
        CaptureError: the kernel refused, or some program is missing.
    """
    if not in_use() and not shutil.which("ipset", path=_SEARCHED):
        return
    kernel = _read()
    for version in _PREFIX_OF:
        _restore(version, xt_text.restore_text(kernel.rules[version], None, version, kernel.paths))
    _ipset(xt_text.unneeded_text(kernel.sets, None))


class _Kernel:
    """What was read."""

    def __init__(self, rules: dict[int, xt_text.Saved], sets: tuple[NamedSet, ...], paths: Paths) -> None:
        self.rules, self.sets, self.paths = rules, sets, paths

    def table(self) -> Table | None:
        return xt_text.table_of(self.rules, self.sets, self.paths)


def _read(paths: Paths | None = None) -> _Kernel:
    texts = {version: _save(version) for version in _PREFIX_OF}
    # Without rules there may be sets still: a kill has left them.
    asked = any(PREFIX in each for each in texts.values()) or shutil.which("ipset", path=_SEARCHED) is not None
    names = _run([_ipset_program(), "list", "-n"]).split() if asked else []
    sets = [xt_text.set_of(_run([_ipset_program(), "save", name])) for name in names if name.startswith(PREFIX)]
    if paths is None:
        paths = _paths() if any(_CGROUP_IN_COMMENT.search(each) for each in texts.values()) else {}
    rules = {version: xt_text.saved(text) for version, text in texts.items()}
    return _Kernel(rules, tuple(each for each in sets if each is not None), paths)


def _save(version: int) -> str:
    program = _found(version, "save") if _loaded(version) else []
    return _run(program) if program else ""


def _change(kernel: _Kernel, table: Table, paths: Paths) -> None:
    shapes = {each.name: replace(each, ranges=()) for each in table.sets}
    if any(replace(each, ranges=()) != shapes.get(each.name, replace(each, ranges=())) for each in kernel.sets):
        remove()  # sets of our names that are of another kind are somebody else's work
        kernel = _read(paths)
    # Words first: what cannot be said must fail before anything is changed.
    texts = {version: xt_text.restore_text(kernel.rules[version], table, version, paths) for version in _PREFIX_OF}
    _ipset(xt_text.sets_text(kernel.sets, table))
    for version, text in texts.items():
        _restore(version, text)
    _ipset(xt_text.unneeded_text([each for each in kernel.sets if not each.name.startswith("T_")], table))


def _restore(version: int, text: str) -> None:
    if text:
        _run([*_program(version, "restore"), "--noflush", "-w", str(_LOCK_S)], text)


def _ipset(text: str) -> None:
    if text:
        _run([_ipset_program(), "restore"], text)


def _loaded(version: int) -> bool:
    try:
        return bool(Path(f"/proc/thread-self/net/{_PREFIX_OF[version]}_tables_names").read_text().strip())
    except OSError:
        return False


def _found(version: int, what: str) -> list[str]:
    """Return iptables-save or -restore of the older interface, [] if there is none."""
    name = f"{_PREFIX_OF[version]}tables"
    legacy = shutil.which(f"{name}-legacy-{what}", path=_SEARCHED)
    if legacy:
        return [legacy]
    plain = shutil.which(f"{name}-{what}", path=_SEARCHED)
    if plain and "nf_tables" not in _run([plain, "--version"]):
        return [plain]
    return []


def _program(version: int, what: str) -> list[str]:
    found = _found(version, what)
    if found:
        return found
    name = f"{_PREFIX_OF[version]}tables"
    raise CaptureError(
        f"the rules are to be held by iptables, and there is no {name}-legacy-{what}: install the packages iptables "
        "and ipset (on Red Hat and its kin iptables-legacy and ipset)"
    )


def _ipset_program() -> str:
    found = shutil.which("ipset", path=_SEARCHED)
    if not found:
        raise CaptureError("capture by iptables needs ipset: install the package ipset")
    return found


def _run(command: list[str], given: str | None = None) -> str:
    environment = {**os.environ, "PATH": _SEARCHED, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=_WITHIN_S, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CaptureError(f"could not run {command[0]}: {error}") from error
    if done.returncode:
        why = " ".join(done.stderr.split())
        raise CaptureError(f"could not write or read the capture rules: {Path(command[0]).name} says: {why}")
    return done.stdout


def _names_cgroups(table: Table) -> bool:
    rules = (rule for chain in table.chains for rule in chain.rules)
    return any(isinstance(each, SocketCgroup) for rule in rules for each in rule.expressions)


def _paths() -> dict[int, str]:
    """Return the paths of all cgroups below the root of version 2, by their numbers."""
    root = _CGROUPS if (_CGROUPS / "cgroup.controllers").exists() else _CGROUPS / "unified"
    return dict(_walk(root))


def _walk(root: Path) -> Iterator[tuple[int, str]]:
    for directory, _, _ in os.walk(root):
        try:
            yield Path(directory).stat().st_ino, os.path.relpath(directory, root)
        except OSError:
            continue
