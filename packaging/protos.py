"""Generate the Python code of our own protocol buffers, or check that the committed code is what they generate.

python packaging/protos.py            write controller/hostmesh_api/v1/*_pb2*
python packaging/protos.py --check    exit 1 and name the files that differ
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = ROOT / "controller"
FOLDER: Final = Path("hostmesh_api/v1")


def generate(into: Path) -> list[Path]:
    """Write the generated code under `into` and return its paths, relative to `into`.

    Raises:
        RuntimeError: protoc refused; holds what it said.
    """
    protos = sorted(str(path.relative_to(SOURCES)) for path in (SOURCES / FOLDER).glob("*.proto"))
    beside = Path(sys.executable).parent
    plugins = [f"--plugin={name}={beside / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    outputs = [f"--{kind}_out={into}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{SOURCES}", *plugins, *outputs, *protos]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"protoc exited with {done.returncode}:\n{done.stderr}")
    return generated(into)


def generated(base: Path) -> list[Path]:
    """Return the paths of generated files under `base`, relative to it."""
    return sorted(path.relative_to(base) for path in (base / FOLDER).glob("*_pb2*.py*"))


def write() -> None:
    """Replace the committed files by what the protos generate now."""
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name)
        wanted = generate(fresh)
        for path in generated(SOURCES):
            if path not in wanted:
                (SOURCES / path).unlink()
        for path in wanted:
            shutil.copyfile(fresh / path, SOURCES / path)


def stale() -> list[Path]:
    """Return the committed files that differ from what the protos generate, with the missing and the left-over ones."""
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name)
        wanted = generate(fresh)
        left_over = set(generated(SOURCES)) - set(wanted)
        differing = {path for path in wanted if not _same(fresh / path, SOURCES / path)}
        return sorted(left_over | differing)


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the committed code is stale")
    if not parser.parse_args().check:
        write()
        return 0
    files = stale()
    for path in files:
        print(
            f"{(SOURCES / path).relative_to(ROOT)} is not what the protos generate; run `make proto`", file=sys.stderr
        )
    return 1 if files else 0


if __name__ == "__main__":
    sys.exit(main())
