"""What the user is told when a command cannot do its work."""

from collections.abc import Iterable, Mapping


class CliError(Exception):
    """The command ends with status 1 and this text: what is wrong, where, and the cure."""


def problem_line(problem: Mapping[str, object]) -> str:
    """One problem in the form that editors can jump to: FILE:LINE: PATH: MESSAGE."""
    file, line, path = problem.get("file"), problem.get("line"), problem.get("path")
    place = f"{file}:{line}" if file and line else str(file or "")
    return ": ".join(str(part) for part in (place, path, problem.get("message")) if part)


def refused(message: str, problems: Iterable[Mapping[str, object]]) -> CliError:
    return CliError("\n".join([f"error: {message}", *(f"  {problem_line(problem)}" for problem in problems)]))
