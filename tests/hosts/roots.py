"""Roots of Debian hosts: one directory a suite, made once of packages and kept below `.cache`.

Nothing of a root is ever committed or handed on: it names the mirror, which is read from this machine's own apt
configuration when a root is made, with the keys that this machine trusts.
"""

import fcntl
import hashlib
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

CACHE: Final = Path(__file__).parents[2] / ".cache" / "hosts"
DEBIAN: Final = {"bullseye": "11", "bookworm": "12", "trixie": "13"}
"""The suites, by Debian's numbers."""
PACKAGES: Final = (
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "udev",
    "kmod",
    "procps",
    "iproute2",
    "iputils-ping",
    "nftables",
    "curl",
    "ca-certificates",
    "openssh-server",
    "sudo",
    "python3",
    # What stands by on many hosts and acts when packages come and go, and another who writes rules. Nothing of them
    # runs before a test has it run (`Machine.make`).
    "needrestart",
    "unattended-upgrades",
    "firewalld",
    "iptables",
    "ipset",
)
OF_SUITE: Final = {
    "bullseye": (),  # systemd-resolved is a part of systemd
    "bookworm": ("systemd-resolved",),
    "trixie": ("systemd-resolved",),
    "bookworm+dnf": ("systemd-resolved", "dnf", "rpm"),
}
"""The last one lives by dnf: rpm's distributions are not to be had here."""
_OPTIONS: Final = (
    "--variant=apt",
    "--mode=root",
    "--quiet",
    "--aptopt=Acquire::Retries 3",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    # A host is given these when it is made: who shares a machine id or a host key is a clone.
    '--customize-hook=rm -f "$1/etc/hostname" "$1/etc/resolv.conf" "$1"/etc/ssh/ssh_host_*',
    '--customize-hook=: > "$1/etc/machine-id"',
    # A host takes packages from where its test says, and from nowhere else.
    '--customize-hook=rm -rf "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*',
    # The journal outlives a reboot, so that tests read what a boot before said.
    '--customize-hook=mkdir -p "$1/var/log/journal"',
)
_WITHIN_S: Final = 900


def root(suite: str) -> Path:
    """Return the root of a suite, made if it is not there yet (about a minute), or is of other packages."""
    CACHE.mkdir(parents=True, exist_ok=True)
    of = hashlib.sha256(repr((suite, _packages(suite), _OPTIONS)).encode()).hexdigest()[:12]
    made = CACHE / f"{suite}-{of}"
    with (CACHE / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            _make(suite, made)
    return made


def number(suite: str) -> str:
    """Return Debian's number of a root's suite."""
    return DEBIAN[suite.partition("+")[0]]


def _packages(suite: str) -> tuple[str, ...]:
    return (*PACKAGES, *OF_SUITE[suite])


def _make(suite: str, made: Path) -> None:
    began = time.monotonic()
    draft = CACHE / f"{suite}.draft"
    for old in (draft, *CACHE.glob(f"{suite}-*")):
        if old.exists():
            shutil.rmtree(old)
    debian = suite.partition("+")[0]
    command = ["mmdebstrap", *_OPTIONS, f"--include={','.join(_packages(suite))}", debian, str(draft)]
    done = subprocess.run(
        [*command, f"deb {mirror()} {debian} main"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_WITHIN_S,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"mmdebstrap {suite}: code {done.returncode}\n{done.stderr[-4000:]}")
    draft.rename(made)
    print(f"root of {suite}: made in {time.monotonic() - began:.0f} s")


def mirror() -> str:
    """Return where this machine has Debian's main archive from."""
    done = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(ORIGIN)|$(COMPONENT)|$(RELEASE)|$(REPO_URI)",
            "Created-By: Packages",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rows = [line.split("|") for line in done.stdout.splitlines()]
    found = [
        uri
        for origin, component, release, uri in rows
        if (origin, component) == ("Debian", "main") and not release.endswith(("-security", "-updates", "-backports"))
    ]
    assert found, "apt knows no archive of Debian's here (apt-get update has not run, or this is no Debian)"
    return found[0]
