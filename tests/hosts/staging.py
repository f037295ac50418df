"""The agent in a host, until there is a package: what the package will install, over this project's own interpreter.

    /usr/lib/systemd/system/hostmesh-*    packaging/systemd
    /usr/lib/sysusers.d/hostmesh.conf     packaging/sysusers.d
    /usr/bin/hostmesh-agent               a launcher of the interpreter below
    /usr/lib/hostmesh                     an environment like .venv, whose parts are bound in, read-only

Nothing else knows how the agent gets into a host. `apt install` replaces this module.
"""

import sys
import sysconfig
from pathlib import Path
from typing import Final

from shipping.parts import AGENT, script

TREE: Final = Path(__file__).parents[2]
HOME: Final = Path("/usr/lib/hostmesh")
_UNITS: Final = TREE / "packaging" / "systemd"
_PYTHON: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
_LAUNCHER: Final = f"""#!{HOME}/bin/{_PYTHON} -I
import sys
sys.argv[0] = "hostmesh-agent"
from hostmesh_agent.cli import main
main()
"""
_BOUND: Final = {
    Path(sys.base_prefix): HOME / "python",
    Path(sysconfig.get_path("purelib")): HOME / "packages",
    TREE / "agent": HOME / "agent",
    TREE / "controller": HOME / "controller",
}


def stage(disk: Path) -> dict[Path, Path]:
    """Write onto a host's disk (which lies over its root), and return what is to be bound into it, read-only.

    The budget's part that is for hosts with cgroups goes along: in these hosts Envoy has one of its own.
    """
    for source in sorted(_UNITS.rglob("*")):
        if source.is_file() and source.parent.name == "unprivileged":
            _put(disk, Path("usr/lib/hostmesh-agent/unprivileged") / source.name, source.read_text())
        elif source.is_file():
            _put(disk, Path("usr/lib/systemd/system") / source.relative_to(_UNITS), source.read_text())
    _put(disk, Path("usr/lib/sysusers.d/hostmesh.conf"), (TREE / "packaging/sysusers.d/hostmesh.conf").read_text())
    _put(disk, Path("usr/bin/hostmesh-agent"), _LAUNCHER, mode=0o755)
    for name, what in AGENT.scripts:
        text = script(f"{HOME}/bin/{_PYTHON}", f"{HOME}/agent", what)
        _put(disk, Path("usr/lib/hostmesh-agent") / name, text, mode=0o755)
    home = _below(disk, HOME)
    for inside in _BOUND.values():
        _below(disk, inside).mkdir(parents=True)
    (home / "bin").mkdir()
    (home / "bin" / _PYTHON).symlink_to(HOME / "python" / "bin" / _PYTHON)
    (home / "pyvenv.cfg").write_text(f"home = {HOME}/python/bin\ninclude-system-site-packages = false\n")
    site = home / "lib" / _PYTHON / "site-packages"
    site.mkdir(parents=True)
    (site / "hostmesh.pth").write_text("".join(f"{HOME}/{each}\n" for each in ("packages", "agent", "controller")))
    _lend_shared_library(disk)
    return _BOUND


def finish() -> list[str]:
    """Return the command that ends the installation in the running host, as a package's script does."""
    enable = "systemctl --quiet enable hostmesh-guard.service hostmesh-agent.service"
    return ["sh", "-ec", f"systemd-sysusers; systemctl daemon-reload; {enable}"]


def _lend_shared_library(disk: Path) -> None:
    """An interpreter that is mostly a shared library looks for it where it was built."""
    name = str(sysconfig.get_config_var("INSTSONAME") or "")
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and not (disk / "usr/lib" / name).is_symlink():
        (disk / "usr/lib" / name).symlink_to(HOME / "python/lib" / name)


def _put(disk: Path, path: Path, text: str, mode: int = 0o644) -> None:
    target = disk / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    target.chmod(mode)


def _below(disk: Path, path: Path) -> Path:
    return disk / path.relative_to("/")
