;; A proxy-wasm plugin (ABI 0.2.1) for tests: it adds the header `x-wasm` to every request, with the plugin's
;; configuration as value, or `yes` where there is none. `header.wasm.b64` is this, compiled by wasmtime's wat2wasm.
(module
  (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_buffer_bytes" (func $buffer (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "x-wasm")
  (data (i32.const 16) "yes")
  (global $free (mut i32) (i32.const 1024))
  (global $value (mut i32) (i32.const 16))
  (global $size (mut i32) (i32.const 3))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $bytes i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $free))
    (global.set $free (i32.add (global.get $free) (local.get $bytes)))
    (local.get $at))
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param $root i32) (param $bytes i32) (result i32)
    (if (local.get $bytes)
      (then
        ;; Buffer 7 is the plugin's configuration; where it is and how long it is are written to 32 and 36.
        (if (i32.eqz (call $buffer (i32.const 7) (i32.const 0) (local.get $bytes) (i32.const 32) (i32.const 36)))
          (then
            (global.set $value (i32.load (i32.const 32)))
            (global.set $size (i32.load (i32.const 36)))))))
    (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    ;; Map 0 holds the request's headers.
    (drop (call $add (i32.const 0) (i32.const 0) (i32.const 6) (global.get $value) (global.get $size)))
    (i32.const 0)))
