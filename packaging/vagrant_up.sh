#!/bin/sh
# `vagrant up` with libvirt. Where no libvirtd runs (a container, CI) and this is root, one is started for as long as it
# takes, in namespaces of its own: nothing of it is left, and no network of this machine is touched.
#
#     HOSTMESH_BOX=NAME         a box that vagrant knows or can fetch; unless given, one is made of this machine's archive
#     HOSTMESH_HOSTS=1          how many beside the controller; three unless given
#     HOSTMESH_VM_DRIVER=qemu   without /dev/kvm, or with one that boots nothing; minutes instead of seconds
set -eu
cd "$(dirname "$0")/.."
PATH=$PWD/.cache/ansible/bin:$PATH:/usr/sbin:/sbin
export VAGRANT_HOME="${VAGRANT_HOME:-$PWD/.cache/vagrant/home}" VAGRANT_DEFAULT_PROVIDER=libvirt VAGRANT_CHECKPOINT_DISABLE=1
if [ "${1:-}" != --inside ] && ! virsh -q -c qemu:///system uri >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] || { echo "libvirtd does not answer here (virsh -c qemu:///system uri), and you are not root" >&2; exit 1; }
    exec unshare --mount --net --pid --fork --kill-child=KILL --mount-proc "$0" --inside
fi
if [ "${1:-}" = --inside ]; then
    ip link set lo up
    # What libvirt keeps, and where it listens.
    for each in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
        mkdir -p $each
        mount -t tmpfs tmpfs $each
    done
    mkdir -p /run/libvirt /run/lock /var/lib/libvirt/images
    printf 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\n' >/run/qemu.conf
    mount --bind /run/qemu.conf /etc/libvirt/qemu.conf
    [ "${HOSTMESH_VM_DRIVER:-}" != qemu ] || [ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm
    # Networks need br_netfilter and the like of nobody: addresses and DHCP are all.
    virtlogd --daemon
    libvirtd --daemon
    until virsh -q -c qemu:///system uri >/dev/null 2>&1; do sleep 0.1; done
fi
if [ -z "${HOSTMESH_BOX:-}" ]; then
    sh packaging/vagrant_box.sh
    export HOSTMESH_BOX=hostmesh/debian
    vagrant box add --force --name "$HOSTMESH_BOX" .cache/vagrant/hostmesh-*.box
fi
cd vagrant
began=$(date +%s)
vagrant up
echo "vagrant up: $(($(date +%s) - began)) s"
vagrant ssh controller -c 'sudo hostmesh host list'
[ "${1:-}" != --inside ] || vagrant destroy --force
