"""The host's package manager: what is installed, fetched from the repositories that the host knows, put in."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from hostmesh_agent.upgrader import trusted

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ASK_WITHIN_S: Final = 60.0
FETCH_WITHIN_S: Final = 600.0
INSTALL_WITHIN_S: Final = 900.0
"""A package whose script waits for an agent that does not come up waits for five minutes (TimeoutStartSec)."""
LOCK_WITHIN_S: Final = 300
"""For so long somebody else may install something."""
_LOCK_PAUSE_S: Final = 2.0
_ENVIRONMENT: Final = {
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "HOME": "/root",
    # Our packages' scripts leave the agent to us.
    "HOSTMESH_UPGRADE": "1",
}
_LINES: Final = 3


class PackageError(Exception):
    """The package manager did not do it; the text has its words."""


class Packages(Protocol):
    """One kind of package manager. All methods block, and raise PackageError."""

    kind: str

    def installed(self, package: str) -> str:
        """Return the version that is installed whole; "" for none."""

    def is_of(self, path: Path) -> tuple[str, str]:
        """Return which package a file is, and of which version."""

    def fetch(self, package: str, version: str, into: Path) -> Path:
        """Fetch a version from the host's own repositories, as far as it trusts them, into an empty directory."""

    def install(self, path: Path) -> None:
        """Install a file, be its version higher or lower. Nothing is removed for it."""

    def put_back(self, path: Path) -> None:
        """Install a file with nobody's help, whatever state an earlier try has left."""


class Debian:
    """dpkg and apt."""

    kind = "deb"

    def installed(self, package: str) -> str:
        shown = "${db:Status-Status} ${Version}"
        try:
            status, _, version = run(["dpkg-query", "--show", f"--showformat={shown}", package]).partition(" ")
        except PackageError:
            return ""
        return version.strip() if status == "installed" else ""

    def is_of(self, path: Path) -> tuple[str, str]:
        lines = run(["dpkg-deb", "--field", str(path), "Package", "Version"]).splitlines()
        said = dict(line.split(": ", 1) for line in lines if ": " in line)
        return said.get("Package", ""), said.get("Version", "")

    def fetch(self, package: str, version: str, into: Path) -> Path:
        words = ["apt-get", "--quiet", "--option=Acquire::Retries=2", "download", f"{package}={version}"]
        try:
            run(words, within_s=FETCH_WITHIN_S, cwd=into)
        except PackageError:
            # What is known of the repositories may be old; that another one of them fails is not ours to judge.
            with suppress(PackageError):
                run(["apt-get", "--quiet", "update"], within_s=FETCH_WITHIN_S)
            run(words, within_s=FETCH_WITHIN_S, cwd=into)
        return _one(into, package, ".deb")

    def install(self, path: Path) -> None:
        options = ("Dpkg::Options::=--force-confold", f"DPkg::Lock::Timeout={LOCK_WITHIN_S}")
        run(
            [
                *("apt-get", "--quiet", "--yes", "--allow-downgrades", "--no-remove", "--no-install-recommends"),
                *(f"--option={each}" for each in options),
                *("install", str(path)),
            ],
            within_s=INSTALL_WITHIN_S,
        )

    def put_back(self, path: Path) -> None:
        until = time.monotonic() + LOCK_WITHIN_S
        while True:
            try:
                run(["dpkg", "--force-confold", "--install", str(path)], within_s=INSTALL_WITHIN_S)
            except PackageError as error:
                if "lock" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(_LOCK_PAUSE_S)
            else:
                return


class Rpm:
    """rpm and dnf. Not shown yet on a host of an rpm distribution."""

    kind = "rpm"

    def installed(self, package: str) -> str:
        try:
            return run(["rpm", "--query", "--queryformat=%{VERSION}", package]).strip()
        except PackageError:
            return ""

    def is_of(self, path: Path) -> tuple[str, str]:
        shown = "--queryformat=%{NAME} %{VERSION}"
        name, _, version = run(["rpm", "--query", "--package", shown, str(path)]).strip().partition(" ")
        return name, version

    def fetch(self, package: str, version: str, into: Path) -> Path:
        words = ("dnf", "--assumeyes", "--quiet", "--refresh", "download", f"--destdir={into}", f"{package}-{version}")
        run(list(words), within_s=FETCH_WITHIN_S)
        found = _one(into, package, ".rpm")
        # `dnf download` looks at no signature: what rpm does not know the key of is not what the host trusts.
        if "signatures OK" not in run(["rpmkeys", "--checksig", str(found)]):
            raise PackageError(f"{found.name} is not signed by a key that rpm knows (rpmkeys --import)")
        return found

    def install(self, path: Path) -> None:
        run(["rpm", "--upgrade", "--oldpackage", "--replacepkgs", str(path)], within_s=INSTALL_WITHIN_S)

    def put_back(self, path: Path) -> None:
        self.install(path)


def here(package: str) -> Packages | None:
    """Return the package manager that installed a package; None: none did."""
    found: tuple[Packages, ...] = (Debian(), Rpm())
    return next((each for each in found if each.installed(package)), None)


def _one(into: Path, package: str, suffix: str) -> Path:
    found = [each for each in into.iterdir() if each.name.startswith(package) and each.suffix == suffix]
    if len(found) != 1:
        raise PackageError(f"the package manager brought {len(found)} files, not one")
    return found[0]


def run(command: Sequence[str], *, within_s: float = ASK_WITHIN_S, cwd: Path | None = None) -> str:
    """Run a command to its end and return what it says. Raises PackageError."""
    program = shutil.which(command[0], path=os.environ.get("PATH", PATH))
    if program is None:
        raise PackageError(f"there is no {command[0]} here")
    with subprocess.Popen(
        [program, *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", PATH), **_ENVIRONMENT},
        cwd=cwd or "/",
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise PackageError(f"{' '.join(command[:2])}: no end within {within_s:.0f} s") from None
    if process.returncode != 0:
        words = [line for line in (err or out).strip().splitlines() if line.strip()][-_LINES:]
        raise PackageError(f"{command[0]}: {' / '.join(words) or f'code {process.returncode}'}")
    return out


def fresh(directory: Path) -> Path:
    """Make an empty directory, in the place of what is there."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o755)
    return directory


def copied(source: Path, into: Path, name: str, size_bytes: int, sha256: str) -> Path:
    """Copy a file that somebody else can change while we look, and check the copy. Raises UntrustedError."""
    target = into / name
    found = trusted.copy_foreign(source, target, size_bytes)
    if found != sha256:
        raise trusted.UntrustedError(f"its sha256 is {found}, signed was {sha256}")
    return target
