"""What the user is told when a command cannot do its work."""

from collections.abc import Iterable, Mapping


class CliError(Exception):
    """The command ends with status 1 and this text: what is wrong, where, and the cure.

    `code` is the API's, where it refused.
    """

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


def problem_line(problem: Mapping[str, object]) -> str:
    """One problem in the form that editors can jump to: FILE:LINE:COLUMN: PATH: MESSAGE [CODES].

    What is no error says before the path how bad it is.
    """
    file, line, column = problem.get("file"), problem.get("line"), problem.get("column")
    place = ":".join(str(part) for part in (file, line, column) if part) if file and line else str(file or "")
    codes = " ".join(str(code) for code in (problem.get("istio_code"), problem.get("code")) if code)
    severity = None if problem.get("severity") == "error" else problem.get("severity")
    parts = (place, severity, problem.get("path"), problem.get("message"))
    return ": ".join(str(part) for part in parts if part) + (f" [{codes}]" if codes else "")


def refused(message: str, problems: Iterable[Mapping[str, object]], code: str = "") -> CliError:
    return CliError("\n".join([f"error: {message}", *(f"  {problem_line(problem)}" for problem in problems)]), code)
