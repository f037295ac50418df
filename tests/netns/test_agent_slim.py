"""The agent's slim netlink sockets do to a real kernel what the library's own do."""

import json
import os
import sys
from pathlib import Path
from typing import Final

from netns.space import Space, run, snapshot

_TESTS: Final = str(Path(__file__).parents[1])
_PREFIXES: Final = ["240.240.0.0/16", "fd00:f0f0::/112"]
_ADDRESSES: Final = ["::6"]
_SLIM: Final = "from hostmesh_agent import slim\nslim.leave_out()\n"
_ROUTES: Final = f"""
import json
from dataclasses import astuple
from hostmesh_agent.capture import routes
from netns.space import snapshot
what = {_PREFIXES!r}, {_ADDRESSES!r}
seen = [routes.read(), routes.lacking(*what), routes.write(*what), routes.read(), routes.lacking(*what)]
there = snapshot()
routes.remove()
seen.append(routes.read())
print(json.dumps([[[sorted(part) for part in astuple(each)] for each in seen], there]))
"""


def _seen(program: str) -> tuple[list[list[list[str]]], str]:
    seen, there = json.loads(run(sys.executable, "-c", program, environment=os.environ | {"PYTHONPATH": _TESTS}))
    return seen, there


def test_routes_and_addresses_are_added_found_and_removed_as_by_the_whole_library(host: Space) -> None:
    before = snapshot()
    slim = _seen(_SLIM + _ROUTES)
    assert snapshot() == before
    assert slim == _seen(_ROUTES)
    nothing: list[list[str]] = [[], [], []]
    all_of_it = [_PREFIXES, _ADDRESSES, []]
    assert slim[0] == [nothing, all_of_it, all_of_it, all_of_it, nothing, nothing]
