"""A host whose wall clock is wrong: every program of it is preloaded with one that adds what a file says."""

import hashlib
import struct
import subprocess
from pathlib import Path
from typing import Final

from faults.scene import PROGRAMS, Scene

_PLACE: Final = "/var/lib/clock"
HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S


def library(scene: Scene, offset: Path) -> tuple[Path, Path]:
    """Make what is preloaded, once, for an offset that is in this file; return both."""
    made = scene.folder / f"clock-{hashlib.sha256(bytes(offset)).hexdigest()[:8]}.so"
    if not made.exists():
        source = str(PROGRAMS / "clock.c")
        command = ["cc", "-shared", "-fPIC", "-O2", f'-DOFFSET="{offset}"', "-o", str(made), source, "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
    return made, offset


def fit(scene: Scene, host: str) -> None:
    """Give the host a clock that can be set; programs that start from now on have it."""
    if scene.upper(host, f"{_PLACE}/offset").exists():
        return
    made, _ = library(scene, Path(_PLACE) / "offset")
    scene.run(host, "mkdir", "-p", _PLACE)
    scene.run(host, "cp", str(made), f"{_PLACE}/clock.so")
    scene.run(host, "touch", f"{_PLACE}/offset")
    jump(scene, host, 0)
    scene.run(host, "chmod", "-R", "a+rX", _PLACE)
    scene.run(host, "sh", "-c", f"echo {_PLACE}/clock.so > /etc/ld.so.preload")


def jump(scene: Scene, host: str, offset_s: int) -> None:
    """Set the host's clock to be wrong by so much, at once and for all that runs.

    Written in place, not through a rename: programs have the file mapped.
    """
    write(scene.upper(host, f"{_PLACE}/offset"), offset_s)


def slept(scene: Scene, host: str, offset_s: int) -> None:
    """Let more time have passed since the host's boot, by so much, than its programs have run."""
    write(scene.upper(host, f"{_PLACE}/offset"), offset_s, at=1)


def write(file: Path, offset_s: int, at: int = 0) -> None:
    """`at`: 0 for the wall clock, 1 for the time since boot."""
    file.touch()
    with file.open("r+b") as offset:
        offset.seek(8 * at)
        offset.write(struct.pack("=q", offset_s))


def of(scene: Scene, host: str) -> float:
    """The host's wall clock, seconds since 1970, as a new program of it sees it."""
    return float(scene.run(host, "date", "+%s"))
