"""Look at the kernel's table of this host four times a second.

rules.py        until its input ends; a JSON line a look: [at, digest, the table where its digest is new, else ""]
"""

import hashlib
import json
import re
import select
import subprocess
import sys
import time

PERIOD_S = 0.25


def table() -> str:
    """Return what the table says, without what changes though nothing has changed; "" where there is none."""
    done = subprocess.run(["nft", "--stateless", "list", "table", "inet", "hostmesh"], capture_output=True)
    if done.returncode != 0:
        return ""
    # The order of a set's elements, and of sets and chains, says nothing; whether the owner lives just now is said in
    # comment and flag.
    found = re.sub(rb"(?m)^table .*$|^\tflags .*$", b"", done.stdout)
    text = re.sub(rb"elements = \{(.*?)\}", _sorted, found, flags=re.DOTALL).decode()
    return "\n".join(sorted(text.replace("\n\n", "\n").split("\n\t}\n")))


def _sorted(found: re.Match[bytes]) -> bytes:
    return b"elements = { %s }" % b", ".join(sorted(each.strip() for each in found[1].split(b",")))


def main() -> None:
    due_s = time.monotonic()
    known = {""}
    while True:
        at_s, text = time.monotonic(), table()
        digest = hashlib.sha256(text.encode()).hexdigest()[:10] if text else ""
        print(json.dumps([at_s, digest, "" if digest in known else text]), flush=True)
        known.add(digest)
        due_s += PERIOD_S
        if select.select([sys.stdin], [], [], max(0.0, due_s - time.monotonic()))[0]:
            return


main()
