"""A staged tree becomes an .rpm: a spec is written here, and rpmbuild packs what is there already."""

import shutil
from pathlib import Path
from typing import Final

from shipping.parts import ARCHITECTURES, Part, rpm_name
from shipping.places import PACKAGING
from shipping.release import Release
from shipping.running import run

_DEFINES: Final = {
    # The same on every machine and at any time.
    "_buildhost": "hostmesh",
    "use_source_date_epoch_as_buildtime": "1",
    "clamp_mtime_to_source_date_epoch": "1",
    "source_date_epoch_from_changelog": "0",
    # What is staged is finished: nothing is stripped, compiled, linked or looked for.
    "__os_install_post": "%{nil}",
    "__arch_install_post": "%{nil}",
    "debug_package": "%{nil}",
    "_build_id_links": "none",
    "_build_name_fmt": "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
    "_binary_filedigest_algorithm": "8",
    "_source_filedigest_algorithm": "8",
}
COMPLETION: Final = {"usr/share/zsh/vendor-completions": "usr/share/zsh/site-functions"}
_SHELLS: Final = frozenset(
    {"usr/share/fish", "usr/share/fish/vendor_completions.d", "usr/share/zsh", "usr/share/zsh/site-functions"}
)
"""Owned by the shells' packages, too, and by nobody where there is no such shell: rpm would leave them behind."""
"""Where Debian has what is elsewhere in rpm's distributions."""


def spec(part: Part, release: Release, paths: list[tuple[str, bool]]) -> str:
    """Return the spec; `paths` are all files and our own directories, with whether each is one."""
    requires = [each.format(version=release.version) for each in part.requires]
    lines = [
        f"Name: {part.name}",
        f"Version: {release.version}",
        "Release: 1",
        f"Summary: {part.summary[0].upper()}{part.summary[1:]}",
        "License: Apache-2.0",
        *([f"URL: {release.homepage}"] if release.homepage else []),
        f"Packager: {release.maintainer}",
        "Vendor: hostmesh",
        f"BuildArch: {ARCHITECTURES[1]}",
        "AutoReqProv: no",
        "Requires: glibc >= 2.30",
        *(f"Requires: {each}" for each in requires),
        *(f"Recommends: {each}" for each in part.recommends),
        "",
        "%description",
        *part.description,
        "",
        "%install",
        'cp -a "%{stage}/." "%{buildroot}/"',
        "",
        *_scripts(part),
        "",
        "%files",
        "%defattr(-,root,root,-)",
        *(_entry(part, path, is_directory) for path, is_directory in paths),
        "",
        "%changelog",
        f"* {release.when:%a %b %d %Y} {release.maintainer} - {release.version}-1",
        "- See the project's CHANGELOG.",
    ]
    return "\n".join(lines) + "\n"


def _scripts(part: Part) -> list[str]:
    source = PACKAGING / "rpm" / f"{part.name}.scripts"
    return source.read_text().splitlines() if source.is_file() else []


def _entry(part: Part, path: str, is_directory: bool) -> str:
    if is_directory:
        return f'%dir "/{path}"'
    kind = "%config(noreplace) " if path in part.configuration else ""
    kind = "%doc " if path.startswith("usr/share/doc/") else kind
    kind = "%license " if path.endswith(("/LICENSE", "/copyright", ".copyright")) and kind == "%doc " else kind
    return f'{kind}"/{path}"'


def owned(part: Part, stage: Path) -> list[tuple[str, bool]]:
    """Return every file, and the directories that go with this package, if nobody else has them."""
    own = (part.home, f"usr/share/doc/{part.name}", "etc/hostmesh")
    found = []
    for each in sorted(stage.rglob("*")):
        path = str(each.relative_to(stage))
        is_directory = each.is_dir() and not each.is_symlink()
        if not is_directory or path in _SHELLS or any(path == top or path.startswith(f"{top}/") for top in own if top):
            found.append((path, is_directory))
    return found


def build(part: Part, release: Release, stage: Path, into: Path) -> Path:
    """Pack what is staged; the stage is left as it was."""
    work = stage.with_name(f"{stage.name}.rpm")
    shutil.rmtree(work, ignore_errors=True)
    tree, top = work / "tree", work / "top"
    top.mkdir(parents=True)
    run(["cp", "-a", "--reflink=auto", str(stage), str(tree)])
    for debian, others in COMPLETION.items():
        if (tree / debian).is_dir():
            (tree / others).parent.mkdir(parents=True, exist_ok=True)
            (tree / debian).rename(tree / others)
    (work / "package.spec").write_text(spec(part, release, owned(part, tree)))
    defines = {
        **_DEFINES,
        "_topdir": str(top),
        "_rpmdir": str(work),
        "_binary_payload": f"w{release.level}T1.xzdio",
        "stage": str(tree),
    }
    words = [word for name, value in defines.items() for word in ("--define", f"{name} {value}")]
    target = [f"--target={ARCHITECTURES[1]}-linux", "--buildroot", str(work / "root")]
    command = ["rpmbuild", "-bb", "--quiet", *words, *target, str(work / "package.spec")]
    run(command, environment=release.environment, within_s=1800)
    made = into / rpm_name(part, release.version)
    shutil.move(work / made.name, made)
    shutil.rmtree(work)
    return made
