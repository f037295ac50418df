"""Extensions in the lab: Wasm modules that agents fetch, Lua by EnvoyFilter, and patches of Envoy's bootstrap."""

from base64 import b64encode
from collections.abc import Iterator

import pytest

from e2e.driver import PROGRAMS, Answer, Lab, eventually, new_lab
from wasm.module import HEADER, MODULE, SHA256

MESH = """
apiVersion: v1
kind: Service
metadata: {{name: orders}}
spec:
  selector: {{app: orders}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client}}
spec: {{address: {client}, serviceAccount: client, labels: {{app: client}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: orders}}
spec: {{address: {server}, serviceAccount: orders, labels: {{app: orders}}}}
"""
PLUGIN = """
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {{name: header}}
spec:
  selector: {{matchLabels: {{app: orders}}}}
  url: {url}
  sha256: {sha256}
  pluginConfig: {{version: {version}}}
  failStrategy: {strategy}
"""
LUA = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: lua}
spec:
  workloadSelector: {labels: {app: client}}
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_OUTBOUND
      listener:
        filterChain:
          filter:
            name: envoy.filters.network.http_connection_manager
            subFilter: {name: envoy.filters.http.router}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.lua
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
          inlineCode: |
            function envoy_on_request(handle)
              handle:headers():add("x-lua", "yes")
            end
"""
BOOTSTRAP = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {{name: start}}
spec:
  workloadSelector: {{labels: {{app: client}}}}
  configPatches:
  - applyTo: BOOTSTRAP
    patch:
      operation: MERGE
      value: {value}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A client and a server; outside is a web server that has the module."""
    with new_lab() as lab:
        lab.verb("up", "client", "server", "--no-join", "outside")
        lab.detach("server", "python3", str(PROGRAMS / "http_echo.py"), "8080", "orders", user="app")
        encoded = b64encode(MODULE).decode()
        lab.exec("outside", "sh", "-c", "mkdir -p /var/lib/web && base64 -d > /var/lib/web/m.wasm", text_in=encoded)
        lab.detach("outside", "python3", "-m", "http.server", "8000", "--directory", "/var/lib/web")
        lab.apply(MESH.format(client=lab.ip("client"), server=lab.ip("server")))
        lab.wait_for_workloads()
        eventually(lambda: call(lab).status == 200, "the client calls")
        yield lab


def call(lab: Lab) -> Answer:
    return lab.curl("client", "http://orders/")


def seen(lab: Lab, header: str) -> str | None:
    """Return what the program sees of a header; None if the call failed or it is not there."""
    answer = call(lab)
    if answer.status != 200:
        return None
    headers: dict[str, str] = {name.lower(): value for name, value in answer.json["headers"].items()}
    return headers.get(header)


def plugin(lab: Lab, path: str = "m.wasm", sha256: str = SHA256, version: int = 1, strategy: str = "FAIL_CLOSE") -> str:
    url = f"http://{lab.ip('outside')}:8000/{path}"
    return PLUGIN.format(url=url, sha256=sha256, version=version, strategy=strategy)


def problems(lab: Lab, host: str) -> str:
    return "; ".join(lab.agent(host)["problems"])


def test_a_plugin_is_fetched_verified_and_runs_and_goes_again(lab: Lab) -> None:
    lab.apply(plugin(lab))
    eventually(lambda: seen(lab, HEADER) == '{"version":1}', "the plugin runs")
    lab.apply(plugin(lab, version=2))
    eventually(lambda: seen(lab, HEADER) == '{"version":2}', "its configuration is another")
    lab.hostmesh("delete", "wasmplugin", "header")
    eventually(lambda: call(lab).status == 200 and seen(lab, HEADER) is None, "it does not run any more")


def test_a_module_with_another_sum_refuses_what_it_guards_and_is_reported(lab: Lab) -> None:
    lab.apply(plugin(lab, sha256="0" * 64))
    eventually(lambda: call(lab).status == 403, "calls are refused")
    eventually(lambda: f"its sha256 is {SHA256}" in problems(lab, "server"), "the agent says why")
    told = lab.hostmesh("proxy", "status", "-o", "json").stdout
    assert "default.header" in told
    lab.apply(plugin(lab, sha256="0" * 64, strategy="FAIL_OPEN"))
    eventually(lambda: call(lab).status == 200, "calls pass")
    assert seen(lab, HEADER) is None
    lab.apply(plugin(lab))
    eventually(lambda: seen(lab, HEADER) == '{"version":1}', "the right sum is enough")
    eventually(lambda: "header" not in problems(lab, "server"), "nothing is wrong any more")


def test_envoy_and_agent_start_from_the_module_on_disk_while_nobody_can_be_asked(lab: Lab) -> None:
    lab.apply(plugin(lab))
    eventually(lambda: seen(lab, HEADER) == '{"version":1}', "the plugin runs")
    lab.exec("outside", "rm", "/var/lib/web/m.wasm")
    lab.verb("stop", "controller")
    try:
        lab.verb("restart", "host/server")
        lab.detach("server", "python3", str(PROGRAMS / "http_echo.py"), "8080", "orders", user="app")
        eventually(lambda: seen(lab, HEADER) == '{"version":1}', "the plugin runs again", timeout_s=40)
    finally:
        lab.verb("start", "controller")
    lab.hostmesh("delete", "wasmplugin", "header")


def test_lua_of_an_envoy_filter_runs_at_the_caller(lab: Lab) -> None:
    lab.apply(LUA)
    eventually(lambda: seen(lab, "x-lua") == "yes", "Lua runs")
    bad = LUA.replace("lua.v3.Lua", "lua.v3.Lau")
    refused = lab.hostmesh("apply", "-f", "-", text_in=bad, check=False)
    assert refused.returncode != 0
    assert "did you mean 'envoy.extensions.filters.http.lua.v3.Lua'?" in refused.stdout + refused.stderr
    lab.hostmesh("delete", "envoyfilter", "lua")
    eventually(lambda: call(lab).status == 200 and seen(lab, "x-lua") is None, "Lua is gone")


def test_a_patched_bootstrap_waits_for_the_next_start_and_a_bad_one_is_never_used(lab: Lab) -> None:
    lab.apply(BOOTSTRAP.format(value='{stats_config: {stats_tags: [{tag_name: mine, fixed_value: "x"}]}}'))
    eventually(lambda: "its bootstrap is another" in lab.agent("client")["envoy"]["restart_needed"], "it is told")
    assert call(lab).status == 200
    pid = lab.agent("client")["envoy"]["pid"]
    lab.exec("client", "kill", str(pid))
    eventually(lambda: lab.agent("client")["envoy"]["pid"] not in {pid, None}, "Envoy is another")
    eventually(lambda: not lab.agent("client")["envoy"]["restart_needed"], "it has the patch")
    assert "mine" in lab.exec("client", "cat", "/var/lib/hostmesh/envoy/bootstrap.json").stdout
    lab.apply(BOOTSTRAP.format(value="{static_resources: {clusters: [{name: x, type: EDS}]}}"))
    eventually(lambda: "not as EnvoyFilters want it" in problems(lab, "client"), "the agent says why")
    pid = lab.agent("client")["envoy"]["pid"]
    lab.exec("client", "kill", "-9", str(pid))
    eventually(lambda: call(lab).status == 200, "Envoy starts without it")
    lab.hostmesh("delete", "envoyfilter", "start")
    eventually(lambda: "EnvoyFilters" not in problems(lab, "client"), "nothing is wrong any more")
