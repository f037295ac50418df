"""Make type stubs for the Envoy messages, so that code which builds them is checked strictly.

xds-protos ships generated Python without stubs. Its modules carry their descriptors, which is all that mypy-protobuf
needs: this asks the plugin for stubs of every Envoy message, as protoc would, and writes them to the git-ignored
folder `.stubs`.

    python packaging/xds_stubs.py [--into .stubs] [--force]

Nothing is done while the stubs come from the same versions and the same script.
"""

import argparse
import hashlib
import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor import FileDescriptor

ROOT: Final = Path(__file__).resolve().parent.parent
STAMP: Final = "made-from"
WANTED: Final = ("envoy/", "xds/", "udpa/", "google/rpc/")
"""What our code may import; what these depend on (google/api, cel, validate, …) comes along."""
UNWANTED: Final = ("envoy/api/",)
"""The v2 API: Envoy no longer speaks it."""
SHIPPED: Final = ("google/protobuf/",)
"""types-protobuf has these."""


def stamp() -> str:
    """Return a text that changes whenever the stubs would."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("xds-protos", "mypy-protobuf")]
    script = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return "\n".join([*versions, f"script {script}", ""])


def modules() -> list[str]:
    """Return the names of the generated modules that xds-protos holds and we want."""
    files = importlib.metadata.files("xds-protos") or []
    paths = sorted(str(file) for file in files)
    wanted = [path for path in paths if path.endswith("_pb2.py") and path.startswith(WANTED)]
    return [path.removesuffix(".py").replace("/", ".") for path in wanted if not path.startswith(UNWANTED)]


def request(descriptors: Iterable[FileDescriptor]) -> CodeGeneratorRequest:
    """Return what protoc would ask a plugin for these files: dependencies come before their users."""
    asked = CodeGeneratorRequest()
    seen: set[str] = set()

    def visit(file: FileDescriptor) -> None:
        if file.name in seen:
            return
        seen.add(file.name)
        for dependency in file.dependencies:
            visit(dependency)
        file.CopyToProto(asked.proto_file.add())
        if not file.name.startswith(SHIPPED):
            asked.file_to_generate.append(file.name)

    for descriptor in descriptors:
        visit(descriptor)
    return asked


def generate(asked: CodeGeneratorRequest, plugin_name: str) -> CodeGeneratorResponse:
    """Run one of mypy-protobuf's plugins, installed beside this Python, as protoc would.

    Raises:
        RuntimeError: the plugin failed; holds what it said.
    """
    plugin = Path(sys.executable).parent / plugin_name
    done = subprocess.run([plugin], input=asked.SerializeToString(), capture_output=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{plugin} exited with {done.returncode}:\n{done.stderr.decode(errors='replace')}")
    response = CodeGeneratorResponse.FromString(done.stdout)
    if response.error:
        raise RuntimeError(f"{plugin}: {response.error}")
    return response


def write(files: Iterable[CodeGeneratorResponse.File], into: Path) -> None:
    """Write the stubs beside `into`, then swap: a mypy that runs meanwhile sees all of them or none."""
    new = Path(tempfile.mkdtemp(prefix=f"{into.name}-", dir=into.parent))
    old = Path(f"{new}.old")
    try:
        new.chmod(0o755)
        for file in files:
            path = new / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.content)
        (new / STAMP).write_text(stamp())
        if into.exists():
            into.rename(old)
        new.rename(into)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def is_fresh(into: Path) -> bool:
    try:
        return (into / STAMP).read_text() == stamp()
    except FileNotFoundError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=ROOT / ".stubs", help="folder to write (default: .stubs)")
    parser.add_argument("--force", action="store_true", help="make them again even if they are fresh")
    options = parser.parse_args()
    into: Path = options.into.absolute()
    if is_fresh(into) and not options.force:
        os.utime(into / STAMP)  # make compares times
        return 0
    asked = request(importlib.import_module(name).DESCRIPTOR for name in modules())
    messages = generate(asked, "protoc-gen-mypy")
    with_services = [file.name for file in asked.proto_file if file.service]
    asked.file_to_generate[:] = with_services
    services = generate(asked, "protoc-gen-mypy_grpc")
    files = [*messages.file, *services.file]
    write(files, into)
    print(f"{into}: {len(files)} stubs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
