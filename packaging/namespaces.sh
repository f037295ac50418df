#!/bin/sh
# Fail, and say what to do, where the lab and the tests of kernel rules cannot make their hosts.
set -eu
if [ "$(id -u)" = 0 ]; then
    unshare --net --mount true 2>/dev/null && exit 0
    echo "Root may not make network namespaces here: the container needs CAP_SYS_ADMIN and CAP_NET_ADMIN." >&2
    exit 1
fi
unshare --user --map-root-user --net --mount true 2>/dev/null && exit 0
echo "The lab needs root or user namespaces, and this user may not make user namespaces." >&2
echo "Run it as root, or allow them:  sudo sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=15000" >&2
echo "(with AppArmor's restriction, also  kernel.apparmor_restrict_unprivileged_userns=0)" >&2
exit 1
