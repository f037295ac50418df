"""`python -m shipping packages|repository`: what `make packages` and `make repo` run."""

import argparse
import fcntl
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shipping import deb, elf, repository, rpm, sources, staging
from shipping.parts import PARTS, Part
from shipping.places import CACHE, DIST
from shipping.release import Release, release
from shipping.running import BuildError
from shipping.stamp import current, fingerprint, write


def packages() -> None:
    """Build what is not built yet of this very tree, and say how large it is and how long it took."""
    wanted = release()
    DIST.mkdir(parents=True, exist_ok=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = (CACHE / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once must not make the same
    if not os.environ.get("REFRESH") and (kept := current(wanted, DIST)) is not None:
        for each in kept:
            _tell(each, "as it is")
        return
    work = CACHE / f"work-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    made: list[Path] = []
    sources.sources(refresh=bool(os.environ.get("REFRESH")))
    of = fingerprint(wanted)
    try:
        at_work = staging.Staging(wanted, work)
        for part in PARTS:
            made += _build(part, wanted, at_work)
        write(wanted, DIST, made, of)
    finally:
        shutil.rmtree(work)


def _build(part: Part, wanted: Release, at_work: staging.Staging) -> list[Path]:
    began = time.monotonic()
    stage = at_work.stage(part)
    newest = elf.newest_glibc(stage)
    staged = time.monotonic()
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda kind: kind.build(part, wanted, stage, DIST), (deb, rpm)))
    kb = sum(each.lstat().st_size for each in stage.rglob("*") if each.is_file() and not each.is_symlink()) // 1000
    glibc = f", asks for glibc {newest[0]}.{newest[1]}" if newest > (0, 0) else ""
    for each in made:
        _tell(each, f"{kb / 1000:.1f} MB installed{glibc}; staged in {staged - began:.0f} s")
    sys.stdout.write(f"{part.name}: packed in {time.monotonic() - staged:.0f} s\n")
    return made


def _tell(path: Path, what: str) -> None:
    sys.stdout.write(f"{path.parent.name}/{path.name}: {path.stat().st_size / 1e6:.1f} MB, {what}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="shipping", description="Builds hostmesh's packages and their repositories.")
    parser.add_argument("what", choices=("packages", "repository"))
    what = parser.parse_args().what
    try:
        packages() if what == "packages" else repository.build(DIST)
    except BuildError as error:
        sys.stderr.write(f"shipping: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
