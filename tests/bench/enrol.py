"""Hosts that have joined: the same way as an agent does it, with a token each."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.controller import Controller
from hostmesh_api.joinstring import JoinString
from hostmesh_api.v1.hostmesh_pb2 import JoinRequest
from hostmesh_api.v1.hostmesh_pb2_grpc import EnrolmentStub

if TYPE_CHECKING:  # the stubs alone have it
    from hostmesh_api.v1.hostmesh_pb2_grpc import EnrolmentAsyncStub

_AT_ONCE: Final = 32


def join_all(controller: Controller, hosts: Sequence[str], folder: Path) -> dict[str, Path]:
    """Join registered hosts; return each host's PEM file of key and chain. `folder`/bundle.pem gets the roots."""
    joins = [JoinString.decode(controller.post("/v1/tokens", {"host": host})["join_string"]) for host in hosts]
    return asyncio.run(_join_all(dict(zip(hosts, joins, strict=True)), folder))


async def _join_all(joins: dict[str, JoinString], folder: Path) -> dict[str, Path]:
    first = next(iter(joins.values()))
    root = x509.load_der_x509_certificate(first.root_der).public_bytes(Encoding.PEM)
    (folder / "bundle.pem").write_bytes(root)
    turns = asyncio.Semaphore(_AT_ONCE)
    async with grpc.aio.secure_channel(first.endpoints[0], grpc.ssl_channel_credentials(root)) as channel:
        stub = EnrolmentStub(channel)

        async def join(token: str) -> bytes:
            async with turns:
                return await _join(stub, token)

        identities = await asyncio.gather(*(join(each.token) for each in joins.values()))
    return {host: _write(folder / f"{host}.pem", pem) for host, pem in zip(joins, identities, strict=True)}


def _write(file: Path, pem: bytes) -> Path:
    file.write_bytes(pem)
    return file


async def _join(stub: "EnrolmentAsyncStub", token: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    request = JoinRequest(token=token, csr_der=csr.public_bytes(Encoding.DER))
    response = await stub.Join(request, timeout=60)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem + response.chain_pem
