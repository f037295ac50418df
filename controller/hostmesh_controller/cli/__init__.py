"""The `hostmesh` command: nouns and verbs over the admin API.

`app` is the tree of commands; each noun's module (`documents`, `objects`, `registering`, `hosts`, `pending`, `tokens`,
`proxies`, `translate`, `explain`, `authz` with `authz_suggest`, `mtls`, `jwks`, `authority`, `operations`) imports what
is slow only when it runs; `ssh` goes to hosts. `connection` talks to the controller, `sources` and `kinds` read what
people type, `output` prints, `failure` is what a user is told.
"""

import sys


def main() -> None:
    """Run the command line; exit 0 when done, 1 when refused or failed, 2 when called wrongly."""
    from hostmesh_controller.cli.app import app
    from hostmesh_controller.cli.failure import CliError

    try:
        app(prog_name="hostmesh")
    except CliError as error:
        from hostmesh_controller.cli.output import note

        note(str(error))
        sys.exit(1)
