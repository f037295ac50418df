"""apt, dpkg, dnf and rpm, as the program that exchanges packages calls them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hostmesh_agent.upgrader.packages import Debian, PackageError, Rpm, run

NAME = "hostmesh-agent"
OLD, NEW = "0.1.0", "0.2.0"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Programs of the package manager's name, which note how they were called."""
    home = tmp_path / "bin"
    home.mkdir()
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")

    def tool(name: str, body: str) -> Path:
        (home / name).write_text(
            f'#!/bin/sh\nprintf "%s " {name} "$@" >> {tmp_path}/calls\necho >> {tmp_path}/calls\n{body}\n'
        )
        (home / name).chmod(0o755)
        return tmp_path / "calls"

    return tool


def test_dpkg_says_what_a_package_is(tmp_path: Path) -> None:
    (tmp_path / "p/DEBIAN").mkdir(parents=True)
    (tmp_path / "p/DEBIAN/control").write_text(
        f"Package: {NAME}\nVersion: {NEW}\nArchitecture: amd64\nMaintainer: a <a@b.c>\nDescription: none\n"
    )
    run(["dpkg-deb", "--build", str(tmp_path / "p"), str(tmp_path / "x.deb")])
    assert Debian().is_of(tmp_path / "x.deb") == (NAME, NEW)
    (tmp_path / "y.deb").write_bytes(b"no package")
    with pytest.raises(PackageError, match="dpkg-deb"):
        Debian().is_of(tmp_path / "y.deb")
    assert Debian().installed("no-such-package-of-ours") == ""


def test_apt_is_asked_again_once_it_knows_of_news(tools: Callable[[str, str], Path], tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    calls = tools(
        "apt-get",
        f'case "$*" in *update*) touch {tmp_path}/fresh; exit 100;; esac\n'
        f'[ -e {tmp_path}/fresh ] || {{ echo "E: Version was not found" >&2; exit 100; }}\n'
        f"touch {NAME}_{NEW}_amd64.deb",
    )
    assert Debian().fetch(NAME, NEW, into).name == f"{NAME}_{NEW}_amd64.deb"
    assert [each.split()[-1] for each in calls.read_text().splitlines()] == [f"{NAME}={NEW}", "update", f"{NAME}={NEW}"]


def test_apt_installs_lower_versions_and_removes_nothing_for_it(tools: Callable[[str, str], Path]) -> None:
    calls = tools("apt-get", '[ "$HOSTMESH_UPGRADE" = 1 ] && [ "$DEBIAN_FRONTEND" = noninteractive ]')
    Debian().install(Path("/x/y.deb"))
    words = calls.read_text().split()
    assert {"--allow-downgrades", "--no-remove", "--yes"} <= set(words)
    assert words[-2:] == ["install", "/x/y.deb"]


def test_dpkg_waits_for_who_else_installs(
    tools: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostmesh_agent.upgrader.packages._LOCK_PAUSE_S", 0.01)
    calls = tools(
        "dpkg",
        f'[ -e {tmp_path}/free ] || {{ touch {tmp_path}/free; echo "dpkg frontend lock is locked" >&2; exit 2; }}',
    )
    Debian().put_back(Path("/x/y.deb"))
    assert len(calls.read_text().splitlines()) == 2
    tools("dpkg", "echo no room >&2; exit 1")
    with pytest.raises(PackageError, match="no room"):
        Debian().put_back(Path("/x/y.deb"))


def test_a_package_manager_that_hangs_is_ended(tools: Callable[[str, str], Path]) -> None:
    tools("dpkg-deb", "sleep 100")
    with pytest.raises(PackageError, match="no end within"):
        run(["dpkg-deb", "--field"], within_s=0.2)


def test_dnf_fetches_what_is_signed_by_a_key_that_rpm_knows(tools: Callable[[str, str], Path], tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    calls = tools("dnf", f"touch {into}/{NAME}-{NEW}-1.x86_64.rpm")
    tools("rpmkeys", "echo $2: digests signatures OK")
    assert Rpm().fetch(NAME, NEW, into).name == f"{NAME}-{NEW}-1.x86_64.rpm"
    assert f"{NAME}-{NEW}" in calls.read_text()
    tools("rpmkeys", "echo $2: digests OK")
    with pytest.raises(PackageError, match="not signed by a key"):
        Rpm().fetch(NAME, NEW, into)
    tools("rpm", f'case "$*" in *--package*) echo {NAME} {NEW};; *) echo {OLD};; esac')
    assert (Rpm().installed(NAME), Rpm().is_of(into / "x.rpm")) == (OLD, (NAME, NEW))
    Rpm().install(into / "x.rpm")
    assert "--oldpackage" in calls.read_text().splitlines()[-1]
