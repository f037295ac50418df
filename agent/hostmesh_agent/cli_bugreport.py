"""`hostmesh-agent bugreport`: one file with all that somebody who helps must see, and no secret in it."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from hostmesh_agent import config as configuration
from hostmesh_agent.config import AgentConfig


def add(verbs: Any) -> None:
    report = verbs.add_parser("bugreport", help="write a file for whoever helps: states and logs, no secrets")
    report.add_argument(
        "--output", type=Path, metavar="FILE", help="default: hostmesh-bugreport-TIME.tar.gz, here; must not exist yet"
    )
    report.set_defaults(verb=_bugreport, as_root=True, in_need=True)


def _bugreport(options: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import bugreport, bundle, log

    log.configure("critical")
    name = f"hostmesh-bugreport-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    path = options.output or Path(f"{name}.tar.gz")
    named = options.config or Path(os.environ.get(configuration.ENVIRONMENT) or configuration.DEFAULT_PATH)
    try:
        with bundle.new(path, name) as opened:
            hidden = bugreport.write(config, named, opened, getattr(options, "config_problem", ""))
    except OSError as error:
        print(f"hostmesh-agent: {path}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size} bytes, readable for its owner alone; hidden in {hidden} places")
    print("it has no keys and tokens, and it does have names, addresses and firewall rules: look before you hand it on")
    return 0
