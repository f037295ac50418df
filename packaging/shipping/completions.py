"""Completion for bash, zsh and fish. typer's programs complete themselves; shtab writes the agent's from its parser."""

import sys
from pathlib import Path
from typing import Final

from shipping.running import BuildError, run

PLACES: Final = {
    "bash": "usr/share/bash-completion/completions/{}",
    "zsh": "usr/share/zsh/vendor-completions/_{}",
    "fish": "usr/share/fish/vendor_completions.d/{}.fish",
}


def completion(program: str, shell: str) -> str:
    """Return the script with which a shell completes a program's words."""
    if program == "hostmesh-agent":
        words = ["-m", "shtab", f"--shell={shell}", f"--prog={program}", "hostmesh_agent.cli._parser"]
        made = run([sys.executable, *words])
    else:
        variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
        # Beside this interpreter, of the same versions as what is packed.
        made = run([str(Path(sys.executable).parent / program)], environment={variable: f"source_{shell}"})
    if program not in made:
        raise BuildError(f"no completion of {program} for {shell} was made")
    return made.strip() + "\n"
