"""A version of Envoy that is bad, in four ways."""

from collections.abc import Callable
from typing import Final

from e2e import test_envoy_life as life
from faults.fault import Fault, PromiseBrokenError
from faults.scene import SERVER, Scene

_WAYS: Final = (
    ("does-not-start", "ends at once", "", "--no-such-argument", "it ended before it served"),
    ("crashes", "is killed by SIGSEGV a second later", "(sleep 1; kill -SEGV $$) &", "", "killed by SIGSEGV"),
    ("refuses", "refuses the listeners", "", life.CRIPPLED, "it refuses "),
    ("answers-503", "answers 503", "", f'--config-yaml "{life.OVERLOADED}"', "calls through it failed"),
)


def _bad(before: str, arguments: str, why: str) -> Callable[[Scene], str]:
    def play(scene: Scene) -> str:
        pid = life.steady(scene.lab, SERVER)["pid"]
        said = life.upgrade(scene.lab, SERVER, *life.binary(scene.lab, SERVER, before=before, arguments=arguments))
        if why not in said:
            raise PromiseBrokenError(f"it was not put back for that reason: {said or 'it was taken'}")
        if life.steady(scene.lab, SERVER)["pid"] != pid:
            raise PromiseBrokenError("the Envoy that serves is another")
        return f"said: {said.strip()[:160]}"

    return play


def in_a_hurry(scene: Scene) -> None:
    """Let the host's owner rehearse for seconds; the state of an earlier bad version is cleared."""
    scene.run(
        SERVER,
        "sh",
        "-c",
        f"grep -q rehearsal_s /etc/hostmesh/agent.toml || sed -i '{life.PATIENCE}' /etc/hostmesh/agent.toml",
    )
    scene.lab.verb("restart", f"agent/{SERVER}")


def reset(scene: Scene) -> None:
    life.upgrade(scene.lab, SERVER, "--reset")


UPGRADES: Final = tuple(
    Fault(
        f"envoy-version-{name}",
        f"`envoy upgrade` of the callee to a version that {fault}",
        "It is put back by itself and by name, the old one goes on, no call fails.",
        _bad(before, arguments, why),
        prepare=in_a_hurry,
        mend=reset,
    )
    for name, fault, before, arguments, why in _WAYS
)
