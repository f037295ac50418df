#!/bin/sh
# See to it that the programs which the named groups need are there.
#
#     packaging/system_packages.sh GROUP…      (make | python | mesh | bench | faults | hosts | packages | repo | packages-tests | vagrant | vagrant-up)
#
# As root on Debian and its kin, what is missing is installed. Everybody else gets one message that names all of it.
set -eu
PATH=$PATH:/usr/sbin:/sbin

usable_python() {
    for python in ${PYTHON:-python3.11 python3.12 python3.13 python3 python3.14}; do
        if "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    return 1
}

# program:package of each group; python is a case of its own, because its version and its parts count.
programs_of() {
    case $1 in
        make) echo make:make ;;
        python) ;;
        mesh)
            echo nft:nftables ip:iproute2 unshare:util-linux tcpdump:tcpdump curl:curl ps:procps
            # What tests run beside the mesh, in namespaces of their own.
            echo iptables-legacy:iptables ipset:ipset ufw:ufw firewalld:firewalld
            echo sshd:openssh-server ssh-keygen:openssh-client sudo:sudo
            echo dbus-daemon:dbus dnsmasq:dnsmasq-base faketime:faketime
            # It maps the user ids of an ordinary user's lab; root tests that one, too.
            echo newuidmap:uidmap
            ;;
        bench) echo wrk:wrk ;;
        # In hosts of the lab: an SSH server, and clocks that are wrong, for which a page of C is compiled.
        faults) echo sshd:openssh-server ssh:openssh-client ssh-keygen:openssh-client cc:gcc cc:libc6-dev ;;
        # Hosts with systemd as PID 1, from roots that are made of packages.
        hosts) echo systemd-nspawn:systemd-container mmdebstrap:mmdebstrap nsenter:util-linux ;;
        # Debian's sources, a root to build in, and what packs.
        packages) echo mmdebstrap:mmdebstrap dpkg-source:dpkg-dev objdump:binutils rpmbuild:rpm ;;
        repo) echo apt-ftparchive:apt-utils gpg:gpg gpgconf:gpgconf gpg-agent:gpg-agent rpmsign:rpm createrepo_c:createrepo-c ;;
        vagrant) echo vagrant:vagrant ;;
        vagrant-up)
            echo vagrant:vagrant virsh:libvirt-clients libvirtd:libvirt-daemon-system qemu-system-x86_64:qemu-system-x86
            echo qemu-img:qemu-utils mmdebstrap:mmdebstrap mke2fs:e2fsprogs ip:iproute2 dnsmasq:dnsmasq-base
            ;;
        packages-tests) echo lintian:lintian rpmlint:rpmlint dnf:dnf unshare:util-linux ;;
        *) echo "unknown group: $1" >&2; exit 2 ;;
    esac
}

missing_packages() {
    for group in "$@"; do
        for entry in $(programs_of "$group"); do
            command -v "${entry%%:*}" >/dev/null 2>&1 || echo "${entry#*:}"
        done
        # Plugins have no program of their own.
        if [ "$group" = vagrant-up ] && ! ls -d /usr/share/rubygems-integration/all/gems/vagrant-libvirt-* >/dev/null 2>&1; then
            printf '%s\n' vagrant-libvirt libvirt-daemon-driver-qemu
        fi
        if [ "$group" = python ] && ! usable_python >/dev/null; then
            printf '%s\n' python3 python3-venv
        fi
    done | sort -u
}

# Of what is installed here nothing is to run on this machine: Debian asks this file before it starts a service.
nothing_starts() {
    [ ! -e /usr/sbin/policy-rc.d ] || return 0
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    nothing_starts
    case " $1 " in
        # Nobody's machine gets a firewall because tests ran on it: the service is not started, now or at boot.
        *" firewalld "*) [ ! -d /run/systemd/system ] || systemctl -q mask firewalld ;;
    esac
    said=$(mktemp)
    for attempt in 1 2 3; do
        # A fresh image has no package lists, and old lists name files that are gone.
        if [ "$attempt" -gt 1 ] || [ -z "$(find /var/lib/apt/lists -name '*_Packages*' -print -quit 2>/dev/null)" ]; then
            apt-get -qq -o Acquire::Retries=3 update </dev/null >"$said" 2>&1 || true
        fi
        # shellcheck disable=SC2086 # one word per package
        if apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 install -y --no-install-recommends $1 \
            </dev/null >>"$said" 2>&1; then
            rm -f "$said"
            return 0
        fi
        sleep "$attempt"
    done
    cat "$said" >&2
    rm -f "$said"
    return 1
}

if [ "$1" = --which-python ]; then
    usable_python
    exit
fi

missing=$(missing_packages "$@" | tr '\n' ' ')
missing=${missing% }
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing the system packages that are missing: $missing" >&2
    apt_install "$missing" || true
    missing=$(missing_packages "$@" | tr '\n' ' ')
    missing=${missing% }
    [ -n "$missing" ] || exit 0
fi
case " $missing " in
    *" python3 "*) echo "hostmesh needs Python 3.11 or newer with its venv module; set PYTHON to one that is not on PATH." >&2 ;;
esac
echo "These system packages are missing (Debian's names): $missing" >&2
echo "Install them, then try again:  sudo apt-get install $missing" >&2
exit 1
