"""The module that tests use is the one whose source lies beside it."""

import pytest

from wasm.module import HERE, MODULE


def test_the_bytes_are_what_the_source_compiles_to() -> None:
    wasmtime = pytest.importorskip("wasmtime", reason="wasmtime compiles WAT; it is needed for this alone")
    assert bytes(wasmtime.wat2wasm((HERE / "header.wat").read_text())) == MODULE
