"""WasmPlugins: modules that nothing verifies, and matches that cannot hold."""

from collections.abc import Iterator

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.model.wasm_plugin import WasmPluginSpec


def check_wasm_plugin(spec: WasmPluginSpec) -> Iterator[Finding]:
    """Yield a module that whoever is on the way can exchange, and ports that calls of connections do not tell."""
    if spec.url.startswith("http://") and not spec.sha256:
        message = "whoever is between this address and the hosts can put another module in its place: set sha256"
        yield Finding(("spec", "url"), message, "unverified-module")
    if spec.type != "NETWORK":
        return
    for index, match in enumerate(spec.match):
        if match.ports and match.mode != "SERVER":
            message = (
                "a program's own connections to TCP ports of the mesh share one filter chain, where ports are not told "
                "apart: the plugin does not see those. Leave ports out, or match SERVER at the called"
            )
            yield Finding(("spec", "match", index, "ports"), message, "ineffective-match")
