#!/bin/sh
# Make a box of Debian 12 for vagrant-libvirt in .cache/vagrant: for machines that fetch none, or for a check of ours.
#
# It names this machine's mirror, so it is for this machine alone. The kernel lies beside the disk (there is no boot
# loader): libvirt starts it.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
suite=bookworm
box=.cache/vagrant/hostmesh-$suite.box
[ ! -e "$box" ] || exit 0
mkdir -p .cache/vagrant
work=$(mktemp -d .cache/vagrant/making.XXXXXX)
trap 'rm -rf "$work"' EXIT
key=$(find /usr/share /opt/vagrant -name vagrant.pub -path '*/keys/*' -print -quit 2>/dev/null)
[ -n "$key" ] || { echo "vagrant's public key is not to be found: is vagrant installed?" >&2; exit 1; }
mirror=$(apt-get indextargets --format '$(ORIGIN)|$(COMPONENT)|$(RELEASE)|$(REPO_URI)' 'Created-By: Packages' |
    awk -F'|' '$1 == "Debian" && $2 == "main" && $3 !~ /-(security|updates|backports)$/ { print $4; exit }')
[ -n "$mirror" ] || { echo "apt knows no archive of Debian's here: apt-get update" >&2; exit 1; }

cat >"$work/customize" <<'END'
set -eu
chroot "$1" useradd --create-home --shell /bin/bash vagrant
install -d -m 700 "$1/home/vagrant/.ssh"
install -m 600 "$KEY" "$1/home/vagrant/.ssh/authorized_keys"
chroot "$1" chown -R vagrant: /home/vagrant/.ssh
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$1/etc/sudoers.d/vagrant"
printf '[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n' >"$1/etc/systemd/network/90-dhcp.network"
chroot "$1" systemctl -q enable systemd-networkd
echo '/dev/vda / ext4 rw 0 1' >"$1/etc/fstab"
: >"$1/etc/machine-id"
mv "$1"/boot/vmlinuz-* "$WORK/vmlinuz"
mv "$1"/boot/initrd.img-* "$WORK/initrd.img"
END
WORK=$(realpath "$work") KEY=$key mmdebstrap --mode=root --quiet --variant=apt --aptopt='Acquire::Retries 3' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include=linux-image-cloud-amd64,systemd-sysv,dbus,libpam-systemd,udev,kmod,iproute2,nftables,openssh-server,sudo,python3,python3-apt,curl,ca-certificates,e2fsprogs \
    --customize-hook="sh $work/customize \"\$1\"" $suite "$work/root" "deb $mirror $suite main"
mke2fs -q -t ext4 -E root_owner=0:0 -d "$work/root" "$work/disk" 4G
qemu-img convert -c -O qcow2 "$work/disk" "$work/box.img"
echo '{"provider": "libvirt", "format": "qcow2", "virtual_size": 4}' >"$work/metadata.json"
cat >"$work/Vagrantfile" <<'END'
Vagrant.configure("2") do |config|
  config.vm.provider :libvirt do |libvirt|
    libvirt.kernel = File.join(__dir__, "vmlinuz")
    libvirt.initrd = File.join(__dir__, "initrd.img")
    libvirt.cmd_line = "root=/dev/vda rw console=ttyS0 quiet"
    libvirt.disk_bus = "virtio"
  end
end
END
tar -C "$work" -czf "$work/box" metadata.json Vagrantfile vmlinuz initrd.img box.img
mv "$work/box" "$box"
