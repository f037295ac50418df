"""Signed repositories for apt and dnf in dist/repo, with every version in dist/: a rollback finds older ones.

    dist/repo/apt    pool/main/*.deb   dists/stable/{InRelease,Release,Release.gpg}
    dist/repo/rpm    *.rpm, each signed   repodata/repomd.xml{,.asc}
    dist/repo/hostmesh.asc, hostmesh.gpg   the public key

A directory of static files: any web server, or `file://`, serves it. It is made beside the old one and takes its
place at the end, whole.
"""

import gzip
import lzma
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from shipping.parts import ARCHITECTURES, PARTS
from shipping.running import BuildError, run
from shipping.signing import Key, key

SUITE: Final = "stable"
COMPONENT: Final = "main"
_ABOUT: Final = {
    "Origin": "hostmesh",
    "Label": "hostmesh",
    "Suite": SUITE,
    "Codename": SUITE,
    "Architectures": ARCHITECTURES[0],
    "Components": COMPONENT,
    "Description": "hostmesh: a service mesh for virtual machines and bare metal",
}


def build(dist: Path) -> None:
    """Make both anew. Raises BuildError where there is no package to put into them."""
    debs, rpms = found(dist, ".deb"), found(dist, ".rpm")
    if not debs or not rpms:
        raise BuildError(f"{dist}: there are no packages: make packages")
    draft, target = dist / "repo.draft", dist / "repo"
    shutil.rmtree(draft, ignore_errors=True)
    with key(os.environ.get("KEY", "")) as signer:
        _apt(draft / "apt", debs, signer)
        _rpm(draft / "rpm", rpms, signer)
        (draft / "hostmesh.asc").write_bytes(signer.public(armor=True))
        (draft / "hostmesh.gpg").write_bytes(signer.public(armor=False))
        fingerprint = signer.fingerprint
    old = dist / "repo.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    draft.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    sys.stdout.write(f"dist/repo: {len(debs)} .deb and {len(rpms)} .rpm, signed by {fingerprint}\n")


def found(dist: Path, suffix: str) -> list[Path]:
    """Return our packages of one kind, of every version."""
    names = {each.name for each in PARTS}
    separator = "_" if suffix == ".deb" else "-"
    return sorted(each for each in dist.glob(f"*{suffix}") if _name(each.name, separator) in names)


def _name(file: str, separator: str) -> str:
    return file.partition("_")[0] if separator == "_" else file.rsplit("-", 2)[0]


def _apt(top: Path, debs: list[Path], signer: Key) -> None:
    pool, suite = top / "pool" / COMPONENT, top / "dists" / SUITE
    index = suite / COMPONENT / f"binary-{ARCHITECTURES[0]}"
    for each in (pool, index):
        each.mkdir(parents=True)
    for each in debs:
        shutil.copy(each, pool / each.name)
    packages = run(["apt-ftparchive", "packages", "pool"], cwd=top).encode()
    (index / "Packages").write_bytes(packages)
    (index / "Packages.gz").write_bytes(gzip.compress(packages, 9, mtime=0))
    (index / "Packages.xz").write_bytes(lzma.compress(packages))
    options = [word for name, value in _ABOUT.items() for word in ("-o", f"APT::FTPArchive::Release::{name}={value}")]
    (suite / "Release").write_text(run(["apt-ftparchive", *options, "release", str(suite)]))
    signer.sign(suite / "Release", suite / "InRelease", "--clearsign")
    signer.sign(suite / "Release", suite / "Release.gpg", "--detach-sign")


def _rpm(top: Path, rpms: list[Path], signer: Key) -> None:
    top.mkdir(parents=True)
    copies = []
    for each in rpms:
        shutil.copy(each, top / each.name)
        copies.append(str(top / each.name))
    defines = {"_gpg_name": signer.fingerprint, "_gpg_digest_algo": "sha512", "__gpg": shutil.which("gpg") or "gpg"}
    if signer.home is not None:
        defines["_gpg_path"] = str(signer.home)
    words = [word for name, value in defines.items() for word in ("--define", f"{name} {value}")]
    run(["rpmsign", *words, "--addsign", *copies], within_s=600)
    run(["createrepo_c", "--quiet", "--no-database", str(top)])
    signer.sign(top / "repodata/repomd.xml", top / "repodata/repomd.xml.asc", "--detach-sign")
