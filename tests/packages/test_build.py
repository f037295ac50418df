"""How packages are built: the same bytes twice, nothing twice for nothing, and what lintian and rpmlint say."""

import gzip
import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from packages.building import NAMES, TREE, Built, build, ship


def digests(directory: Path, version: str) -> dict[str, str]:
    return {
        each.name: hashlib.sha256(each.read_bytes()).hexdigest()
        for each in sorted(directory.iterdir())
        if version in each.name and each.suffix in {".deb", ".rpm"}
    }


def test_two_builds_are_the_same_bytes(built: Built, tmp_path: Path) -> None:
    # Of another tree in another place, by somebody else at another time of day.
    tree = tmp_path / "elsewhere"
    tree.mkdir()
    names = ("agent", "controller", "packaging", "pyproject.toml", "CHANGELOG.md", "LICENSE")
    subprocess.run(["cp", "-r", *(str(TREE / each) for each in names), str(tree)], check=True, timeout=60)
    (tree / ".cache").symlink_to(TREE / ".cache")
    epoch = json.loads((built.dist / f".built-{built.version}.json").read_text())["epoch"]
    before = os.umask(0o077)
    try:
        environment = {"TZ": "Asia/Tokyo", "LANG": "C", "HOME": str(tmp_path), "SOURCE_DATE_EPOCH": str(epoch)}
        ship("packages", {"DIST": str(tmp_path / "again"), **environment}, tree)
    finally:
        os.umask(before)
    first, second = digests(built.dist, built.version), digests(tmp_path / "again", built.version)
    assert len(first) == 2 * len(NAMES)
    assert first == second


def test_what_did_not_change_is_not_built_again_and_what_was_harmed_is(built: Built, tmp_path: Path) -> None:
    told = build()
    assert told.count("as it is") == 2 * len(NAMES)
    assert "staged" not in told
    sums = built.dist / f"hostmesh-{built.version}.sha256"
    subprocess.run(["sha256sum", "--check", "--quiet", sums.name], cwd=built.dist, check=True, timeout=60)
    small = built.dist / built.deb("hostmesh-controller")
    whole = small.read_bytes()
    small.write_bytes(whole[:-1])
    assert "staged" in build()
    assert small.read_bytes() == whole


def test_lintian_has_nothing_to_say(built: Built) -> None:
    files = [str(built.dist / each) for each in built.debs()]
    words = ["--fail-on", "error,warning", "--allow-root", "--tag-display-limit", "0"]
    done = subprocess.run(["lintian", *words, *files], capture_output=True, text=True, timeout=900, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_rpmlint_has_nothing_to_say(built: Built) -> None:
    files = [str(built.dist / built.rpm(each)) for each in NAMES]
    words = ["-c", str(TREE / "packaging/rpm/rpmlint.toml")]
    done = subprocess.run(["rpmlint", *words, *files], capture_output=True, text=True, timeout=900, check=False)
    assert "0 errors, 0 warnings" in done.stdout, done.stdout
    assert done.returncode == 0


def plain(text: str) -> str:
    """Names of projects as PyPI compares them."""
    return text.lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize("name", ["hostmesh-agent", "hostmesh", "hostmesh-envoy"])
def test_what_is_in_a_package_is_told_with_its_licence(built: Built, tmp_path: Path, name: str) -> None:
    subprocess.run(["dpkg-deb", "-x", str(built.dist / built.deb(name)), str(tmp_path)], check=True, timeout=120)
    documents = tmp_path / "usr/share/doc" / name
    bill = json.loads((documents / "sbom.cdx.json").read_text())
    told = {each["name"]: each["version"] for each in bill["components"]}
    if name == "hostmesh-envoy":
        manifest = json.loads((tmp_path / "usr/lib/hostmesh-envoy/manifest.json").read_text())
        binary = (tmp_path / "usr/lib/hostmesh-envoy/envoy").read_bytes()
        assert manifest["sha256"] == hashlib.sha256(binary).hexdigest()
        assert told == {"envoy": manifest["version"]}
        return
    found = tmp_path.glob(f"usr/lib/{name}/lib/python3.13/dist-packages/*.dist-info")
    libraries = {plain(each.name.partition("-")[0]) for each in found} - {"hostmesh"}
    assert libraries | {"CPython", "OpenSSL", "SQLite", "zlib", "libffi"} == set(told)
    copyright_file = (documents / "copyright").read_text()
    for library in libraries:
        assert f"\ncomment: {library} " in plain(copyright_file), library
    for source in ("python3.13", "openssl", "sqlite3", "zlib", "libffi"):
        assert "icense" in (documents / f"{source}.copyright").read_text()
    assert gzip.decompress((documents / "CHANGELOG.md.gz").read_bytes()) == (TREE / "CHANGELOG.md").read_bytes()


def test_nothing_in_a_package_tells_where_it_was_built(built: Built, tmp_path: Path) -> None:
    for name in NAMES:
        subprocess.run(["dpkg-deb", "-x", str(built.dist / built.deb(name)), str(tmp_path)], check=True, timeout=120)
    for each in tmp_path.rglob("*"):
        if each.is_file() and not each.is_symlink():
            content = each.read_bytes()
            # PEP 552: 1 is bound to its source by hash and never looked at again; others are written anew at run time.
            assert each.suffix != ".pyc" or content[4:8] == b"\1\0\0\0", each
            assert str(TREE).encode() not in content, each
            assert b"/build/src-" not in content, each
