"""What is said of a release: its bill of materials names all that is in it, its audit says what it does not know."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from audit import FINE, UNKNOWN, VULNERABLE, pinned, verdict

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bom(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("sbom") / "out.json"
    command = [sys.executable, str(ROOT / "packaging/sbom.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def test_the_bill_of_materials_names_every_dependency_at_its_tested_version_and_envoy(bom: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    direct = [*project["dependencies"], *(each for name in ("agent", "controller", "envoy") for each in extras[name])]
    named = {each["name"]: each["version"] for each in bom["components"]}
    for requirement in direct:
        name = plain(requirement.partition(">")[0].partition("=")[0])
        assert name in named
    tested = dict(line.split("==") for line in (ROOT / "packaging/constraints.txt").read_text().splitlines()[1:])
    versions = {plain(name): version for name, version in tested.items()}
    assert {name: version for name, version in named.items() if name != "envoy"}.items() <= versions.items()
    envoy = next(each for each in bom["components"] if each["name"] == "envoy")
    assert envoy["version"] == "1.40.0"
    assert len(envoy["hashes"][0]["content"]) == 64
    assert not {"pytest", "mypy", "ruff"} & named.keys()
    # What comes along with something: none of these is named in pyproject.toml.
    assert {"starlette", "cffi", "h11", "anyio"} <= named.keys()


def test_the_bill_of_materials_is_whole_in_itself(bom: dict[str, Any]) -> None:
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.5")
    refs = [each["bom-ref"] for each in bom["components"]]
    assert len(refs) == len(set(refs))
    known = {*refs, bom["metadata"]["component"]["bom-ref"]}
    assert {each["ref"] for each in bom["dependencies"]} == known
    assert {ref for each in bom["dependencies"] for ref in each["dependsOn"]} <= known


def test_an_audit_is_fine_only_if_every_package_was_looked_up() -> None:
    clean = {"dependencies": [{"name": "a-b", "version": "1", "vulns": []}, {"name": "c", "version": "1", "vulns": []}]}
    assert verdict(["A_b", "c"], clean) == (FINE, ["no known vulnerabilities"])
    code, said = verdict(["a.b", "c", "d"], clean)
    assert (code, said[0]) == (UNKNOWN, "NOT AUDITED: of 1 packages nothing is known: d")
    skipped = {"dependencies": [{"name": "c", "skip_reason": "not found"}]}
    assert verdict(["c"], skipped)[0] == UNKNOWN
    assert verdict(["c"], None)[0] == UNKNOWN


def test_an_audit_names_what_is_vulnerable_also_where_it_does_not_know_everything() -> None:
    bad = {"dependencies": [{"name": "c", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}]}
    code, said = verdict(["c", "d"], bad)
    assert code == VULNERABLE
    assert said[0] == "c 1: CVE-1, fixed in 2"
    assert said[1].startswith("NOT AUDITED")


def test_every_pinned_package_is_asked_for() -> None:
    text = (ROOT / "packaging/constraints.txt").read_text()
    assert len(pinned(text)) == len(text.splitlines()) - 1
