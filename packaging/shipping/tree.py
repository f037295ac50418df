"""One tree with its own Python: the interpreter without what the programs never import, the wheels, our own code.

All of it follows from what it is made of: bytecode is bound to its source by hash (PEP 552), not by time, and every
file has the time of the last commit.
"""

import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from shipping.interpreter import VERSION, Interpreter
from shipping.places import PROJECT
from shipping.running import run

PYTHON: Final = f"python{VERSION}"
_UNUSED_STDLIB: Final = (
    *("idlelib", "tkinter", "turtledemo", "turtle.py", "ensurepip", "pydoc_data", "pydoc.py", "test", "venv"),
    *("lib2to3", "curses", "dbm", "xmlrpc", "doctest.py", "__phello__", "_pyrepl", "site-packages"),
    *("_ios_support.py", "_android_support.py", "_apple_support.py", "dist-packages", "this.py", "antigravity.py"),
)
"""No module of our programs or of their libraries imports these; tests/packages starts every verb without them."""
_UNUSED_EXTENSIONS: Final = (
    "_test*",
    "_ctypes_test*",
    "xxlimited*",
    "xxsubtype*",
    "_xx*",
    "_curses*",
    "_dbm*",
    "_gdbm*",
    "_tkinter*",
    "readline*",
)
_UNUSED_IN_LIBRARIES: Final = ("tests", "testing", "test", "templates")
_NO_CODE: Final = (".pyi", ".pyx", ".pxd", ".c", ".h", ".cpp", ".hpp", ".proto")
_PROGRAMS: Final = ("bin", "hostmesh-agent", "hostmesh-envoy")
"""Directories of what is run; the wheels mark other files, too."""
_PACKAGES: Final = {
    "hostmesh_agent": PROJECT / "agent" / "hostmesh_agent",
    "hostmesh_controller": PROJECT / "controller" / "hostmesh_controller",
    "hostmesh_api": PROJECT / "controller" / "hostmesh_api",
}


def site_packages(home: Path) -> Path:
    """Return where libraries are: Debian's Python, from whose source ours is, looks for them under this name."""
    return home / "lib" / PYTHON / "dist-packages"


def place_interpreter(found: Interpreter, home: Path) -> None:
    """Copy the interpreter to `home`, which is where it will be on the host, below a staging directory."""
    (home / "bin").mkdir(parents=True)
    shutil.copy2(found.home / "bin" / PYTHON, home / "bin" / PYTHON)
    library, source = home / "lib" / PYTHON, found.home / "lib" / PYTHON
    shutil.copytree(source, library, ignore=_unused(source), symlinks=True)
    for pattern in _UNUSED_EXTENSIONS:
        for each in (library / "lib-dynload").glob(pattern):
            each.unlink()
    site_packages(home).mkdir()


def _unused(top: Path) -> "shutil._CopyIgnore":  # type: ignore[name-defined]
    def ignore(directory: str, names: list[str]) -> list[str]:
        at_top = Path(directory) == top
        return [
            each
            for each in names
            if each in {"__pycache__", "macholib"}
            or (at_top and (each in _UNUSED_STDLIB or each.startswith("config-")))
        ]

    return ignore


def _is_unused(directory: Path, site: Path) -> bool:
    """Tests, templates of new projects, and what is for the tools of programmers."""
    in_library = len(directory.relative_to(site).parts) == 2
    return directory.name.startswith(".") or (in_library and directory.name in _UNUSED_IN_LIBRARIES)


def prune_libraries(site: Path) -> None:
    """Take away tests of libraries, and what is for compilers and type checkers."""
    for each in sorted(site.rglob("*")):
        if each.is_dir() and _is_unused(each, site):
            shutil.rmtree(each)
        elif each.is_file() and each.suffix in _NO_CODE:
            each.unlink()
    shutil.rmtree(site / "__pycache__", ignore_errors=True)
    run(["strip", "--strip-unneeded", *(str(each) for each in sorted(site.rglob("*.so")))])


def place_code(packages: Iterable[str], site: Path, version: str) -> None:
    """Copy our own packages, with metadata from which the programs read their version."""
    for name in packages:
        shutil.copytree(_PACKAGES[name], site / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyi", "*.proto"))
    info = site / f"hostmesh-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: hostmesh\nVersion: {version}\nLicense-Expression: Apache-2.0\n"
    )


def compile_bytecode(home: Path, stage: Path) -> None:
    """Compile with the tree's own interpreter, one file after another: several at once share other objects.

    All of them: what that interpreter imports itself would be bound to a time, and be written anew on the host.
    """
    run(
        [
            *(str(home / "bin" / PYTHON), "-S", "-s", "-P", "-m", "compileall", "-q", "-f", "-j", "1"),
            *("--invalidation-mode", "unchecked-hash", "-s", str(stage), "-p", "/", str(home / "lib" / PYTHON)),
        ],
        environment={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8", "PYTHONPATH": ""},
        within_s=1800,
    )


def settle(stage: Path, epoch: int) -> None:
    """Give every file its mode and its time, whatever the umask and the clock of whoever builds."""
    for each in sorted(stage.rglob("*"), reverse=True):
        if not each.is_symlink():
            runs = each.is_dir() or (each.parent.name in _PROGRAMS and each.stat().st_mode & stat.S_IXUSR)
            each.chmod(0o755 if runs else 0o644)
        os.utime(each, (epoch, epoch), follow_symlinks=False)
    stage.chmod(0o755)
    os.utime(stage, (epoch, epoch))
