#!/bin/sh
# Installs what the test cluster's real pods need of a Debian machine: ./install.sh, as root. Nothing is started.
set -eu
complete=yes
for program in buildah containerd debootstrap ip nft runc /usr/lib/cni/bridge; do
    command -v "$program" > /dev/null || complete=no
done
if [ $complete = yes ]; then
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends \
    buildah containerd containernetworking-plugins debootstrap iproute2 nftables runc
