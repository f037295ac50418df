"""apply, diff, validate and delete: whole documents in, a verdict out."""

import sys
from difflib import unified_diff
from typing import Annotated, Any, Final

import typer

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.failure import CliError, problem_line
from hostmesh_controller.cli.kinds import kind_of
from hostmesh_controller.cli.output import Format, Output, emit, key_text, note, plain, say, seconds_of, yaml_text
from hostmesh_controller.cli.sources import Files, Namespace, read_sources

DEFAULT_WAIT: Final = "15s"
_MAX_WAIT_S: Final = 600
_HOSTS_SHOWN: Final = 5


def register(app: typer.Typer) -> None:
    app.command("apply")(apply)
    app.command("validate")(validate)
    app.command("diff")(diff)
    app.command("delete")(delete)


def apply(
    ctx: typer.Context,
    filename: Files,
    namespace: Namespace = "default",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and say what would change; change nothing.")
    ] = False,
    wait: Annotated[
        str, typer.Option(metavar="TIME", help="How long to wait until the hosts have it; 0 not to.")
    ] = DEFAULT_WAIT,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="The same as --wait 0.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Create or change objects: all of them, or none if one is refused."""
    wait_s = 0 if no_wait or dry_run else seconds_of(wait)
    connection: Connection = ctx.obj
    sources = read_sources(filename)
    body = {"sources": [each.body() for each in sources], "namespace": namespace, "dry_run": dry_run}
    result = connection.post("/v1/apply", body)
    if not result["objects"]:
        raise CliError("error: nothing to apply: there is no object in what was given")
    _warn(result)
    if output is Format.TABLE:
        _say(result["objects"], " (dry run)" if dry_run else "")
        if dry_run:
            _say_effects(result)
    settled = _wait(connection, result["revision"], wait_s) if wait_s else None
    if output is not Format.TABLE:
        emit({**result, "hosts": settled}, output)
    elif settled:
        say(settled_text("applied", settled))
    if settled and not settled["converged"]:
        note(f"warning: {_late(settled, wait_s)}")


def diff(
    ctx: typer.Context,
    filename: Files,
    namespace: Namespace = "default",
    output: Output = Format.TABLE,
) -> None:
    """Show what `apply` would change: the objects, and what Envoy is told on the hosts that are connected."""
    connection: Connection = ctx.obj
    body = {"sources": [each.body() for each in read_sources(filename)], "namespace": namespace}
    result = connection.post("/v1/diff", body)
    _warn(result)
    if output is not Format.TABLE:
        emit(result, output)
        return
    changed = [each for each in result["objects"] if each["action"] != "unchanged"]
    for each in changed:
        sys.stdout.write(plain(_unified(each)))
    for resource in result["resources"]:
        sys.stdout.write(plain(_unified_resource(resource)))
    if not changed:
        note("no differences")
    elif not result["resources"]:
        note("no connected proxy would be told anything else")


def validate(
    filename: Files,
    namespace: Namespace = "default",
    output: Output = Format.TABLE,
) -> None:
    """Check documents on this machine; no controller is asked."""
    from hostmesh_controller.checks.world import World
    from hostmesh_controller.review import problem_body, read, review

    sources = read_sources(filename)
    documents = read(((each.name, each.text) for each in sources), namespace)
    verdict = review(documents, World(), alternatives=True)
    problems = [problem_body(problem) for problem in verdict.problems]
    if output is Format.TABLE:
        for problem in problems:
            note(problem_line(problem))
        if not verdict.errors:
            say(f"{len(documents.objects)} object(s) in {len(sources)} file(s) are valid")
    else:
        emit({"valid": not verdict.errors, "problems": problems}, output)
    if verdict.errors:
        raise typer.Exit(1)


def delete(
    ctx: typer.Context,
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="Kind: name, plural or short name.")] = None,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...")] = None,
    filename: Files = [],  # noqa: B006 - typer copies it
    namespace: Namespace = "default",
    ignore_missing: Annotated[
        bool, typer.Option("--ignore-missing", help="It is fine if an object is not there.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Also a Rollout at work: its hosts keep the version, and nobody looks.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Delete objects by name, or all that files describe.

    On a terminal it is asked whether it is meant to take away more than half of the services, hosts or workloads, and
    8 at least.
    """
    if bool(filename) == bool(kind) or (kind and not names):
        raise typer.BadParameter("give KIND and NAME, or -f FILE")
    connection: Connection = ctx.obj
    is_meant = yes or not sys.stdin.isatty()
    body: dict[str, Any] = {"namespace": namespace, "ignore_missing": ignore_missing, "confirmed": is_meant}
    body["abandon"] = abandon
    if kind:
        info = kind_of(kind)
        place = namespace if info.namespaced else ""
        body["keys"] = [{"kind": info.kind, "namespace": place, "name": name} for name in names or ()]
    else:
        body["sources"] = [each.body() for each in read_sources(filename)]
    result = _deleted(connection, body)
    _warn(result)
    if output is Format.TABLE:
        _say(result["objects"], "")
    else:
        emit(result, output)


def _deleted(connection: Connection, body: dict[str, Any]) -> dict[str, Any]:
    try:
        return connection.post("/v1/delete", body)
    except CliError as error:
        if error.code != "most_would_go":
            raise
        note(str(error))
    typer.confirm("Delete them all the same?", abort=True, err=True)
    return connection.post("/v1/delete", {**body, "confirmed": True})


def _say(objects: list[dict[str, Any]], suffix: str) -> None:
    for each in objects:
        say(f"{key_text(each)} {each['action']}{suffix}")


def _say_effects(result: dict[str, Any]) -> None:
    for each in result["resources"]:
        say(f"  {each['type']} {each['name']} {each['action']} on {_hosts_text(each['proxies'])}")
    proxies = result["proxies"]
    count = "1 proxy" if len(proxies) == 1 else f"{len(proxies)} proxies"
    say(f"{count} would be told of it" if proxies else "no connected proxy would be told anything else")


def _hosts_text(hosts: list[str]) -> str:
    more = len(hosts) - _HOSTS_SHOWN
    return ", ".join(hosts[:_HOSTS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _unified_resource(each: dict[str, Any]) -> str:
    title = f"{each['type']} {each['name']} on {_hosts_text(each['proxies'])}"
    if "before" not in each:
        return f"{title}: {each['action']}\n"
    before, after = (
        yaml_text(each[side]).splitlines(keepends=True) if each[side] else [] for side in ("before", "after")
    )
    return "".join(unified_diff(before, after, f"{title} (now)", f"{title} (then)"))


def _warn(result: dict[str, Any]) -> None:
    for problem in result.get("warnings", ()):
        # What is only worth knowing is for `validate`, and for programs.
        if problem["severity"] != "info":
            note(problem_line(problem))


def _wait(connection: Connection, revision: int, wait_s: int) -> dict[str, Any]:
    bounded_s = min(wait_s, _MAX_WAIT_S)
    params = {"revision": revision, "timeout_s": bounded_s}
    return connection.request("GET", "/v1/converged", params=params, timeout_s=bounded_s + 10)


def settled_text(verb: str, settled: dict[str, Any]) -> str:
    """One line: how many of the connected hosts have what was applied."""
    hosts = settled["hosts"]
    if not hosts:
        return f"{verb}; no host is connected"
    done = sum(1 for each in hosts if each["acked"] and not each["waiting_workloads"])
    return f"{verb}; {done} of {len(hosts)} connected hosts have it"


def _late(settled: dict[str, Any], wait_s: int) -> str:
    reasons: list[str] = []
    for each in settled["hosts"]:
        if not each["acked"]:
            reasons.append(f"{each['host']} has not acknowledged it")
        elif each["waiting_workloads"]:
            reasons.append(f"{each['host']}: not ready: {', '.join(each['waiting_workloads'])}")
    return f"after {wait_s}s not everywhere: {'; '.join(reasons)}. See `hostmesh proxy status`."


def _unified(change: dict[str, Any]) -> str:
    before, after = (_lines(change[side]) for side in ("before", "after"))
    name = key_text(change)
    return "".join(unified_diff(before, after, f"{name} (now)", f"{name} (then)"))


def _lines(document: Any) -> list[str]:
    return yaml_text(document).splitlines(keepends=True) if document else []
