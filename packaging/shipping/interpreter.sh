#!/bin/sh
# Inside the build's root: CPython and what it is linked with, from Debian's sources in /build, into /build/out.
#
# Everything but glibc is linked in statically, so that one tree runs wherever glibc is no older than this root's, and so
# that what is linked in is what Debian's newest release still mends, not what this old root has.
set -eu
cd /build
export LC_ALL=C.UTF-8 TZ=UTC HOME=/nonexistent DEB_BUILD_OPTIONS=nocheck
jobs=$(nproc)
# No path of this root in a binary, and what a distribution's own packages are hardened with.
flags="-O2 -fPIC -fstack-protector-strong -D_FORTIFY_SOURCE=2 -Wformat -Werror=format-security -ffile-prefix-map=/build=."

unpack() { # NAME: the one source package of this name, with Debian's patches
    dpkg-source --no-check -x "$1"_*.dsc "src-$1" >/dev/null
    cd "/build/src-$1"
}

# Whoever builds it, and whenever: dated by the newest change of the interpreter's own source.
(unpack python3.13)
SOURCE_DATE_EPOCH=$(dpkg-parsechangelog -l src-python3.13/debian/changelog -S Timestamp)
export SOURCE_DATE_EPOCH

(
    unpack zlib
    CFLAGS=$flags ./configure --static --prefix=/build/deps >/dev/null
    make -j"$jobs" libz.a >/dev/null
    make install >/dev/null
)
(
    unpack libffi
    # Its archive has no configure, and this root's autoconf is older than what it asks for.
    sed -i 's/^AC_PREREQ.*//; s/AC_CHECK_INCLUDES_DEFAULT/AC_HEADER_STDC/' configure.ac
    autoreconf --force --install >/dev/null
    ./configure --disable-shared --with-pic --disable-docs --disable-exec-static-tramp --disable-multi-os-directory --prefix=/build/deps CFLAGS="$flags" >/dev/null
    make -j"$jobs" >/dev/null
    make install >/dev/null
    # Wherever it thinks that libraries of this machine belong.
    find /build/deps -name libffi.a ! -path /build/deps/lib/libffi.a -exec mv {} /build/deps/lib/ \;
    test -e /build/deps/lib/libffi.a
)
(
    unpack sqlite3
    mkdir /build/sqlite-made
    cd /build/sqlite-made
    ../src-sqlite3/configure --disable-shared --disable-tcl --disable-readline --prefix=/build/deps \
        CFLAGS="$flags" >/dev/null
    make sqlite3.c >/dev/null
    # The command line is not built: the library alone.
    cc $flags -DSQLITE_THREADSAFE=1 -DSQLITE_ENABLE_COLUMN_METADATA -DSQLITE_SECURE_DELETE -DSQLITE_USE_URI \
        -DSQLITE_ENABLE_FTS5 -DSQLITE_ENABLE_JSON1 -DSQLITE_OMIT_LOAD_EXTENSION -c sqlite3.c -o sqlite3.o
    ar rcD /build/deps/lib/libsqlite3.a sqlite3.o
    cp sqlite3.h /build/deps/include/
)
(
    unpack openssl
    ./Configure linux-x86_64 no-shared no-tests no-docs no-apps no-legacy no-engine -fPIC $flags \
        --prefix=/build/deps --libdir=lib --openssldir=/etc/ssl >/dev/null
    make -j"$jobs" build_libs >/dev/null
    make install_dev >/dev/null
    # glibc has threads and dl apart in this root, and who links with the archive names it last.
    mv /build/deps/lib/libcrypto.a /build/deps/lib/libcrypto-code.a
    echo 'INPUT(/build/deps/lib/libcrypto-code.a -lpthread -ldl)' >/build/deps/lib/libcrypto.a
)
(
    cd src-python3.13
    static=libcrypto-code.a:libssl.a:libsqlite3.a:libz.a:libffi.a
    ./configure --prefix=/usr/lib/hostmesh-python LIBFFI_LIBS="-L/build/deps/lib -lffi" LIBFFI_CFLAGS=-I/build/deps/include \
        --without-ensurepip --disable-test-modules --with-openssl=/build/deps \
        --with-system-libmpdec=no --enable-loadable-sqlite-extensions=no --without-readline --with-dbmliborder= \
        CFLAGS="$flags" CPPFLAGS=-I/build/deps/include \
        LDFLAGS_NODIST="-L/build/deps/lib -Wl,-z,relro,-z,now,--exclude-libs,$static" PKG_CONFIG_PATH=/build/deps/lib/pkgconfig \
        LIBSQLITE3_CFLAGS=-I/build/deps/include LIBSQLITE3_LIBS="-L/build/deps/lib -lsqlite3 -lm" >/dev/null
    make -j"$jobs" >/dev/null
    make install DESTDIR=/build/out >/dev/null
    sed -i 's#/build/src-python3\.13#.#g' /build/out/usr/lib/hostmesh-python/lib/python3.13/_sysconfigdata__*.py
    strip --strip-unneeded /build/out/usr/lib/hostmesh-python/bin/python3.13
    find /build/out -name '*.so' -exec strip --strip-unneeded {} +
)
# What the programs import of it, or the build failed in silence.
/build/out/usr/lib/hostmesh-python/bin/python3.13 -I -c \
    'import ctypes, hashlib, sqlite3, ssl, zlib; print(ssl.OPENSSL_VERSION, "SQLite", sqlite3.sqlite_version, "zlib", zlib.ZLIB_RUNTIME_VERSION)'
mkdir -p /build/out/licences
for each in src-*; do
    cp "$each/debian/copyright" "/build/out/licences/${each#src-}"
done
