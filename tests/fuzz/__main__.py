"""`make fuzz`: bytes that nobody thought of, for everything that reads what others wrote.

    python -m fuzz [TARGET] [--seconds 60]

Each target runs in a process of its own. What it finds is written to .cache/fuzz/TARGET: mend the code, and put the
file into tests/fuzz/corpus/TARGET, where a unit test replays it for ever. Needs the extra `fuzz` (atheris).
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Final

from fuzz.targets import TARGETS

HERE: Final = Path(__file__).parent
KEPT: Final = HERE.parents[1] / ".cache/fuzz"
MAX_INPUT_BYTES: Final = 16 << 10
SLOW_S: Final = 10
MEMORY_MB: Final = 2048


def fuzz(target: str, seconds: int) -> None:
    """Run one target in this process; it ends the process."""
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore] # make fuzz installs it

    with atheris.instrument_imports(include=["hostmesh_agent", "hostmesh_api", "hostmesh_controller"]):
        run = TARGETS[target]()
    kept = KEPT / target
    kept.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-timeout={SLOW_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={kept}/",
        "-print_final_stats=1",
        "-close_fd_mask=0",
        str(kept / "corpus"),
        str(HERE / "corpus" / target),
    ]
    (kept / "corpus").mkdir(exist_ok=True)
    atheris.Setup([sys.argv[0], *options], run)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=["", *TARGETS], default="")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        fuzz(options.target, options.seconds)
        return 0
    failed = []
    for target in [options.target] if options.target else TARGETS:
        print(f"== {target}, {options.seconds} s", flush=True)
        words = [sys.executable, "-m", "fuzz", target, "--seconds", str(options.seconds), "--here"]
        if subprocess.run(words, check=False).returncode:
            failed.append(target)
    if failed:
        print(f"something was found by {', '.join(failed)}: see {KEPT}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
