"""The demo: a small shop on five hosts, and what the mesh promises shown on it.

    run ─▶ claims ─▶ stage (the lab, its programs and its configuration) · wire (packets on the bridge)

`programs` are what runs on the hosts, and know nothing of a mesh; `config` is Istio's YAML with the hosts' addresses
left open.
"""
