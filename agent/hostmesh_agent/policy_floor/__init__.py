"""The host's policy floor: what no controller can have of this host, unless its owner says so in agent.toml.

    table     where in Envoy's messages a path or a socket can be (generated: packaging/envoy_fields.py)
    reach     which files and sockets Envoy may be told to use (pure)
    entrance  which ports Envoy may listen on, and what callers must show there (pure)
    floor     all of it together: why a resource, or a patch of the bootstrap, is not taken (pure)

What is refused never reaches Envoy: what ran goes on running, and the controller is told by name. A message that the
table does not know is refused as well, for nobody here can tell what it would do.

What the floor does not promise: it does not judge where connections go. Envoy's user reaches what any user of the host
reaches over TCP, and Lua is a program that runs as that user (`refused_extensions` leaves it out).
"""
