"""ca: the roots of the mesh, and how one takes another's place."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, Final

import typer

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.failure import CliError
from hostmesh_controller.cli.output import Format, Output, emit, note, seconds_of, table

app = typer.Typer(
    no_args_is_help=True,
    help="The certificate authority: prepare a new root, activate it, taint the old one, revoke it.",
)

Force = Annotated[bool, typer.Option("--force", help="Also where hosts would be cut off.")]
RootId = Annotated[
    str | None, typer.Argument(metavar="[ID]", help="ID of the root; the only one that it can be, unless given.")
]
Within = Annotated[
    str, typer.Option("--within", metavar="TIME", help="Spread the renewals over this time; at most 1h.")
]
_POLL_S: Final = 0.5
_NAMED: Final = 5


@app.command("show")
def show(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """Show the roots, who has certificates of which, and who has not heard of which."""
    found = _get(ctx)
    if output is not Format.TABLE:
        emit(found, output)
        return
    rows = [
        (
            each["id"],
            each["state"] + (", compromised" if each["compromised"] else ""),
            each["source"],
            each["not_before"][:10],
            each["not_after"][:10],
            sum(each["holders"].values()),
            _some(each["holders"]),
            _some([*each["unacknowledged"]["connected"], *each["unacknowledged"]["offline"]]),
        )
        for each in found["roots"]
    ]
    table(
        ("ID", "STATE", "SOURCE", "FROM", "UNTIL", "CERTIFICATES", "HELD BY", "NOT ACKNOWLEDGED"),
        rows,
        empty="there are no roots",
    )
    if found["problem"]:
        note(f"ALARM: what signs ends at {found['signing_until']}, and there is no new one: {found['problem']}")


@app.command("prepare")
def prepare(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """Have every host trust a new root; the old one goes on signing."""
    taken = _post(ctx, "prepare", {})
    _tell(taken, output, f"root {taken['id']} is prepared; when all hosts have it: hostmesh ca activate")


@app.command("activate")
def activate(ctx: typer.Context, force: Force = False, output: Output = Format.TABLE) -> None:
    """Let the prepared root sign; refused while a connected host does not trust it."""
    taken = _post(ctx, "activate", {"force": force})
    _tell(taken, output, f"root {taken['id']} signs now; to have all certificates renewed: hostmesh ca taint")
    _name_offline(taken, output, "have not heard of it; they take it when they come back")


@app.command("taint")
def taint(ctx: typer.Context, root: RootId = None, within: Within = "30s", output: Output = Format.TABLE) -> None:
    """Have every certificate of an old root renewed at once."""
    taken = _post(ctx, "taint", {"root": root, "within_s": seconds_of(within)})
    _tell(taken, output, f"root {taken['id']} is tainted; when nobody has a certificate of it: hostmesh ca revoke")
    if output is Format.TABLE:
        table(("HOST", "CERTIFICATES"), taken["holders"].items(), empty="no host has a certificate of it")


@app.command("revoke")
def revoke(
    ctx: typer.Context,
    root: RootId = None,
    force: Force = False,
    compromised: Annotated[
        bool, typer.Option("--compromised", help="Somebody may have its key: hosts that know no other must join again.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Take a root from all hosts; refused while one has certificates of it."""
    taken = _post(ctx, "revoke", {"root": root, "force": force, "compromised": compromised})
    _tell(taken, output, f"root {taken['id']} is revoked; make a backup now: hosts trust no root of an older one")
    _name_offline(taken, output, "had certificates of it; they get new ones when they come back")


@app.command("rotate")
def rotate(
    ctx: typer.Context,
    within: Within = "30s",
    timeout: Annotated[str, typer.Option(metavar="TIME", help="How long each step may wait for the hosts.")] = "10m",
    force: Force = False,
) -> None:
    """Do all steps, each when it is safe; started again it goes on where it ended.

    A host that is away holds up the last one, until its certificates have ended.
    """
    found = _get(ctx)
    # One that goes away meanwhile is only opening its stream anew, with its new certificate: it is waited for.
    away, wait_s = frozenset(found["away"]), seconds_of(timeout)
    if not _in_state(found, "old") and not _in_state(found, "tainted"):
        if not _in_state(found, "prepared"):
            prepare(ctx)
        new = _in_state(_get(ctx), "prepared")[0]["id"]
        _wait(ctx, "hosts have the new root", partial(_lacking, root=new, away=away), wait_s)
        activate(ctx)
    for each in _in_state(_get(ctx), "old"):
        taint(ctx, each["id"], within)
    for each in _in_state(_get(ctx), "tainted"):
        _wait(ctx, "certificates are renewed", partial(_holding, root=each["id"], away=away), wait_s)
        revoke(ctx, each["id"], force)


def _some(names: Iterable[str]) -> list[str]:
    """Return a few names, and how many there are beside them."""
    every = list(names)
    more = len(every) - _NAMED
    return [*every[:_NAMED], f"and {more} more"] if more > 0 else every


def _lacking(found: dict[str, Any], root: str, away: frozenset[str]) -> list[str]:
    unacknowledged = _root(found, root)["unacknowledged"]
    return _not_away([*unacknowledged["connected"], *unacknowledged["offline"]], found, away)


def _holding(found: dict[str, Any], root: str, away: frozenset[str]) -> list[str]:
    return _not_away(_root(found, root)["holders"], found, away)


def _not_away(hosts: Iterable[str], found: dict[str, Any], away: frozenset[str]) -> list[str]:
    """Return the hosts that are there, or were when it began."""
    return [host for host in hosts if host not in away or host not in found["away"]]


def _wait(ctx: typer.Context, what: str, missing: Callable[[dict[str, Any]], list[str]], within_s: float) -> None:
    """Return when nobody is missing any more; say how many are when that changes."""
    deadline, told = time.monotonic() + within_s, -1
    while names := missing(_get(ctx)):
        if len(names) != told:
            told = len(names)
            note(f"waiting until {what}: {told} to go")
        if time.monotonic() > deadline:
            raise CliError(f"error: not within {within_s:g} s: {what}; missing: {', '.join(sorted(names)[:20])}")
        time.sleep(_POLL_S)


def _in_state(found: dict[str, Any], state: str) -> list[dict[str, Any]]:
    return [each for each in found["roots"] if each["state"] == state]


def _root(found: dict[str, Any], root: str) -> dict[str, Any]:
    return next(each for each in found["roots"] if each["id"] == root)


def _get(ctx: typer.Context) -> dict[str, Any]:
    connection: Connection = ctx.obj
    return connection.get("/v1/ca")


def _post(ctx: typer.Context, step: str, body: dict[str, Any]) -> dict[str, Any]:
    connection: Connection = ctx.obj
    return connection.post(f"/v1/ca/{step}", body)


def _tell(taken: dict[str, Any], output: Format, sentence: str) -> None:
    if output is Format.TABLE:
        note(sentence)
    else:
        emit(taken, output)


def _name_offline(taken: dict[str, Any], output: Format, what: str) -> None:
    if taken["offline"] and output is Format.TABLE:
        note(f"{', '.join(taken['offline'])} {what}")
