#!/bin/sh
# Installs what the test cluster's real pods need of a Debian machine: ./install.sh, as root. Nothing is started.
set -eu
if command -v containerd runc ip nft > /dev/null && [ -x /usr/lib/cni/bridge ]; then
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends containerd runc containernetworking-plugins iproute2 nftables
