"""The admin API: JSON over HTTPS and over a unix socket only root can open.

The way of a request: `bounds` (size) ▶ `principals` (who, which role) ▶ a route module (`documents`, `objects`,
`tokens`, `hosts`, `pending`, `proxies`, `explain`, `authorization`, `observed`, `jwks`, `authority`, `operations`) ▶
the registrar (writes) or the store (reads) ▶ `bodies`, `fleet`, `effects` (what goes over the wire). What callers may
not do is noted by `denials`. Whatever goes wrong leaves in the one shape of `errors`. `app` puts it together.
"""
