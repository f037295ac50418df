"""The SPIFFE Workload API: programs of this host fetch certificates of their own, by who they are to the kernel.

    answers       certificates in the API's messages (pure)
    svids         the certificates: keys of their own, kept 0600, renewed at half their life
    front         the edge: the socket that everybody may call; who calls is noted and passed on with the bytes
    service       the API itself, in gRPC
    serving       all of it together

Who is at the other end of a unix socket in the kernel's word is in `peer`, who may have what in `entitlements`.

gRPC's Python API does not tell who is at the other end of a unix socket. So the socket that programs call is our own:
`front` asks the kernel and splices the bytes to gRPC's socket, in a directory that is closed to others, from an address
that names the connection.

The keys are not those that Envoy has: a program that leaks its key does not give away what speaks for the host's
traffic, Envoy's user and the programs' cannot read each other's, and each is renewed by itself.
"""
