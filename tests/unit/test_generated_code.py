"""Generated code that is committed is what its sources generate."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_committed_protobuf_code_is_what_the_protos_generate() -> None:
    script = ROOT / "packaging" / "protos.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_agent_knows_of_envoys_messages_is_what_their_descriptors_say() -> None:
    script = ROOT / "packaging" / "envoy_fields.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")
