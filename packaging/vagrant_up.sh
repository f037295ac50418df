#!/bin/sh
# `vagrant up` with libvirt. Where no libvirtd runs (a container, CI) and this is root, one is started for as long as it
# takes, in namespaces of its own: nothing of it is left, and no network of this machine is touched.
#
#     HOSTMESH_BOX=NAME         a box that vagrant knows or can fetch; unless given, one is made of this machine's archive
#     HOSTMESH_HOSTS=1          how many beside the controller; three unless given
#     HOSTMESH_VM_DRIVER=qemu   without /dev/kvm, or with one that boots nothing; minutes instead of seconds
#
# It ends with calls from the last host to the applications of the others (vagrant/site.yml), and writes vagrant/LAST_RUN
# once they have held with three hosts.
set -eu
cd "$(dirname "$0")/.."
PATH=$PWD/.cache/ansible/bin:$PATH:/usr/sbin:/sbin
export VAGRANT_HOME="${VAGRANT_HOME:-$PWD/.cache/vagrant/home}" VAGRANT_DEFAULT_PROVIDER=libvirt VAGRANT_CHECKPOINT_DISABLE=1
if [ "${1:-}" != --inside ] && ! virsh -q -c qemu:///system uri >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] || { echo "libvirtd does not answer here (virsh -c qemu:///system uri), and you are not root" >&2; exit 1; }
    exec unshare --mount --net --pid --fork --kill-child=KILL --mount-proc "$0" --inside
fi
if [ "${1:-}" = --inside ]; then
    # The machines end with this, so nothing of them is to be remembered.
    VAGRANT_DOTFILE_PATH=$(mktemp -d .cache/vagrant/state.XXXXXX)
    VAGRANT_DOTFILE_PATH=$(realpath "$VAGRANT_DOTFILE_PATH")
    export VAGRANT_DOTFILE_PATH
    trap 'rm -rf "$VAGRANT_DOTFILE_PATH"' EXIT
    ip link set lo up
    # What libvirt keeps, and where it listens.
    for each in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
        mkdir -p $each
        mount -t tmpfs tmpfs $each
    done
    mkdir -p /run/libvirt /run/lock /var/lib/libvirt/images
    # Settings of its own, over those that there are: qemu reads the box's kernel where vagrant keeps it.
    mkdir -p /etc/libvirt /run/etc
    cp -a /etc/libvirt/. /run/etc
    printf 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\n' >/run/etc/qemu.conf
    mount --bind /run/etc /etc/libvirt
    [ "${HOSTMESH_VM_DRIVER:-}" != qemu ] || [ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm
    virtlogd --daemon
    LIBVIRT_LOG_OUTPUTS=3:file:/var/log/libvirt/libvirtd.log libvirtd --daemon
    timeout 60 sh -c 'until virsh -q -c qemu:///system uri >/dev/null 2>&1; do sleep 0.2; done' || {
        echo "libvirtd does not come up here:" >&2
        cat /var/log/libvirt/libvirtd.log >&2 || true
        exit 1
    }
fi
if [ -z "${HOSTMESH_BOX:-}" ]; then
    sh packaging/vagrant_box.sh
    export HOSTMESH_BOX=hostmesh/debian
    vagrant --no-tty box add --force --name "$HOSTMESH_BOX" .cache/vagrant/hostmesh-*.box
fi
cd vagrant
began=$(date +%s)
vagrant --no-tty up
took=$(($(date +%s) - began))
echo "vagrant up: $took s"
vagrant ssh controller -c 'sudo hostmesh host list'
if [ "${HOSTMESH_HOSTS:-3}" = 3 ]; then
    for name in catalog orders; do
        said=$(vagrant ssh host3 -c "curl -sS --fail -m 10 http://$name.shop/")
        case $said in
            *URI=spiffe://cluster.local/ns/shop/sa/shopper*) ;;
            *)
                echo "$name does not say that it was called by shopper: $said" >&2
                exit 1
                ;;
        esac
    done
    commit=$(git describe --always --dirty 2>/dev/null || echo unknown)
    echo "$(date -u +%F), $took s, driver ${HOSTMESH_VM_DRIVER:-kvm}, commit $commit: host3 called catalog and orders as shopper, 200" |
        tee LAST_RUN
fi
[ "${1:-}" != --inside ] || vagrant destroy --force
