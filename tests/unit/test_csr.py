"""Requests: the public key of one who holds the private key, or a refusal."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import assume, given
from hypothesis import strategies as st

import pki
from hostmesh_agent.keys import csr_der, new_key
from hostmesh_controller.csr import MAX_CSR_BYTES, CsrError, public_key_of

GOOD = csr_der(new_key())
UNUSED_BITS = len(GOOD) - len(x509.load_der_x509_csr(GOOD).signature) - 1
"""The byte before the signature says how many of its last bits count for nothing; 1 is true of every second one."""


def signed(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_the_key_of_a_request_on_a_curve_that_envoy_takes_is_returned(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    assert public_key_of(signed(key)) == key.public_key()


def test_what_a_request_asks_for_is_not_even_looked_at() -> None:
    key = new_key()
    assert public_key_of(pki.greedy_csr(key)) == key.public_key()


@pytest.mark.parametrize("curve", [ec.SECP224R1(), ec.SECP521R1(), ec.SECP256K1()])
def test_other_curves_are_refused(curve: ec.EllipticCurve) -> None:
    with pytest.raises(CsrError, match="another kind of key"):
        public_key_of(signed(ec.generate_private_key(curve)))


def test_rsa_and_ed25519_are_refused() -> None:
    with pytest.raises(CsrError, match="another kind of key"):
        public_key_of(signed(rsa.generate_private_key(65537, 2048)))
    edwards = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    with pytest.raises(CsrError, match="another kind of key"):
        public_key_of(edwards.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.DER))


def test_a_request_for_somebody_elses_key_is_refused() -> None:
    thief, victim = new_key(), new_key()
    own = csr_der(thief)
    raw_own, raw_victim = (
        each.public_key().public_numbers().x.to_bytes(32) + each.public_key().public_numbers().y.to_bytes(32)
        for each in (thief, victim)
    )
    with pytest.raises(CsrError, match="not of its own key"):
        public_key_of(own.replace(raw_own, raw_victim))


def test_a_huge_request_is_refused_unread() -> None:
    with pytest.raises(CsrError, match=f"at most {MAX_CSR_BYTES}"):
        public_key_of(GOOD + b"\0" * MAX_CSR_BYTES)


@pytest.mark.parametrize("junk", [b"", b"\0", b"hello", b"\x30\x82\xff\xff", GOOD[:-1], GOOD + b"\0"])
def test_what_is_no_request_is_refused(junk: bytes) -> None:
    with pytest.raises(CsrError, match="the agent must send"):
        public_key_of(junk)


@given(st.integers(min_value=0, max_value=len(GOOD) - 1), st.integers(min_value=1, max_value=255))
def test_one_changed_byte_anywhere_is_a_refusal_and_never_another_error(place: int, change: int) -> None:
    assume(place != UNUSED_BITS)
    changed = bytearray(GOOD)
    changed[place] ^= change
    with pytest.raises(CsrError):
        public_key_of(bytes(changed))
