"""The lab: hosts made of namespaces on one machine, with the real controller, agents, Envoys and kernel rules.

    cli ─▶ up · components · demo ─▶ world · host · controller · agent · envoy ─▶ space · spawn ─▶ inside
                                                         layout · process · subnet · machine

A lab has a *world*: one process that holds a network, mount and process namespace with a bridge in it. The controller
runs in the world; every host is a set of namespaces below it, with an init of its own. Ending the world's process
ends all of them, and the kernel removes every interface and rule. What the lab keeps lies in one directory (`layout`).

`inside` runs without the site-packages (`python -I -S`): it may import the standard library and itself only.
"""
