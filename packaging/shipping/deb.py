"""A staged tree becomes a .deb: its control files are written here, and dpkg-deb packs both."""

import gzip
import hashlib
import shutil
from email.utils import format_datetime
from pathlib import Path
from typing import Final

from shipping.parts import ARCHITECTURES, Part, deb_name
from shipping.places import PACKAGING
from shipping.release import Release
from shipping.running import run
from shipping.tree import settle

SCRIPTS: Final = ("preinst", "postinst", "prerm", "postrm")
_COMPRESSION: Final = ("-Zxz", "--threads-max=1", "--root-owner-group")
"""xz is what Debian 11 can unpack. One thread: what several make depends on how many there are."""


def control(part: Part, release: Release, installed_kb: int) -> str:
    fields = {
        "Package": part.name,
        "Version": release.version,
        "Architecture": ARCHITECTURES[0],
        "Maintainer": release.maintainer,
        "Installed-Size": str(installed_kb),
        "Depends": ", ".join(each.format(version=release.version) for each in part.depends),
        "Recommends": ", ".join(part.recommends),
        "Section": part.section,
        "Priority": "optional",
        "Homepage": release.homepage,
        "Description": "\n".join([part.summary, *(f" {line or '.'}" for line in part.description)]),
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value)


def changelog(part: Part, release: Release) -> bytes:
    """Return the compressed changelog that Debian's tools look for; what users notice is in the project's own."""
    text = (
        f"hostmesh ({release.version}) unstable; urgency=medium\n\n"
        f"  * {part.name} {release.version}: see the project's CHANGELOG.\n\n"
        f" -- {release.maintainer}  {format_datetime(release.when)}\n"
    )
    return gzip.compress(text.encode(), 9, mtime=0)


def build(part: Part, release: Release, stage: Path, into: Path) -> Path:
    """Pack what is staged; the stage is left as it was."""
    work = stage.with_name(f"{stage.name}.deb")
    shutil.rmtree(work, ignore_errors=True)
    run(["cp", "-a", "--reflink=auto", str(stage), str(work)])
    documents = work / "usr/share/doc" / part.name
    (documents / "changelog.gz").write_bytes(changelog(part, release))
    overrides = PACKAGING / "deb" / f"{part.name}.lintian-overrides"
    if overrides.is_file():
        place = work / "usr/share/lintian/overrides"
        place.mkdir(parents=True)
        shutil.copy(overrides, place / part.name)
    files = sorted(each for each in work.rglob("*") if each.is_file() and not each.is_symlink())
    home = work / "DEBIAN"
    home.mkdir()
    kb = sum(-(-each.stat().st_size // 1024) for each in files)
    (home / "control").write_text(control(part, release, kb))
    owned = {f"/{each}" for each in part.configuration}
    (home / "md5sums").write_text(_md5sums(work, files, owned))
    if owned:
        (home / "conffiles").write_text("".join(f"{each}\n" for each in sorted(owned)))
    settle(work, release.epoch)
    for name in SCRIPTS:
        source = PACKAGING / "deb" / f"{part.name}.{name}"
        if source.is_file():
            shutil.copy(source, home / name)
            (home / name).chmod(0o755)
    target = into / deb_name(part, release.version)
    command = ["dpkg-deb", *_COMPRESSION, f"-z{release.level}", "--build", str(work), str(target)]
    run(command, environment=release.environment, within_s=1800)
    shutil.rmtree(work)
    return target


def _md5sums(top: Path, files: list[Path], owned: set[str]) -> str:
    rows = []
    for each in files:
        name = each.relative_to(top)
        if f"/{name}" not in owned:
            digest = hashlib.file_digest(each.open("rb"), lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            rows.append(f"{digest}  {name}\n")
    return "".join(rows)
