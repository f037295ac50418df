"""Our own Python: built once in a root of Debian 11, whose glibc is the oldest that is promised, and cached.

The build takes about ten minutes; the cache is keyed by the recipe and the versions of all that goes into it.
"""

import hashlib
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shipping.mirror import KEYRING, mirror
from shipping.places import CACHE
from shipping.running import BuildError, run
from shipping.sources import Sources, sources

SUITE: Final = "bullseye"
RECIPE: Final = Path(__file__).with_name("interpreter.sh")
PREFIX: Final = "usr/lib/hostmesh-python"
"""Where the build puts it; it finds its own parts wherever it is moved."""
VERSION: Final = "3.13"
_BUILD: Final = (
    *("gcc", "g++", "libc6-dev", "make", "perl", "dpkg-dev", "xz-utils", "tcl"),
    *("pkg-config", "autoconf", "automake", "libtool", "libltdl-dev"),
)
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_WITHIN_S: Final = 5400


@dataclass(frozen=True, slots=True)
class Interpreter:
    """`home` has bin/, lib/ and include/; `licences` one file for each source that is in it."""

    home: Path
    licences: Path
    made_from: Sources


def interpreter() -> Interpreter:
    """Return it, built if it is not there yet."""
    taken = sources()
    made = CACHE / f"interpreter-{key(taken)}"
    if not made.is_dir():
        _build(taken, made)
    return Interpreter(made / PREFIX, made / "licences", taken)


def key(taken: Sources) -> str:
    what = repr((RECIPE.read_bytes(), SUITE, _BUILD, sorted(taken.versions.items())))
    return hashlib.sha256(what.encode()).hexdigest()[:12]


def _build(taken: Sources, made: Path) -> None:
    began = time.monotonic()
    sys.stderr.write("building Python and OpenSSL in a root of Debian 11; this takes about ten minutes, once\n")
    draft = CACHE / "interpreter.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        run(_command(taken, draft), within_s=_WITHIN_S)
    except BuildError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    for old in CACHE.glob("interpreter-*"):
        shutil.rmtree(old)
    draft.rename(made)
    sys.stderr.write(f"built in {time.monotonic() - began:.0f} s\n")


def _command(taken: Sources, into: Path) -> list[str]:
    """One call makes the root, builds in it, takes the result out and leaves nothing else."""
    inside = '"$1"/build'
    return [
        *("mmdebstrap", "--variant=apt", "--mode=root", "--format=null", "--quiet", "--aptopt=Acquire::Retries 3"),
        f"--include={','.join(_BUILD)}",
        f"--customize-hook=mkdir {inside}",
        f"--customize-hook=cp {taken.directory}/* {RECIPE} {inside}",
        # Nothing of the caller's environment: its make must not take over the flags of the make that called us.
        f'--customize-hook=chroot "$1" env -i PATH={_PATH} sh /build/{RECIPE.name}',
        f"--customize-hook=cp -a {inside}/out/. {into}",
        *(SUITE, "/dev/null", f"deb [signed-by={KEYRING}] {mirror().main} {SUITE} main"),
    ]
