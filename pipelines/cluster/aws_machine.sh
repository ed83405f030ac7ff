#!/usr/bin/env bash
# Sets up a machine of the cluster from Ubuntu's image: limits, shared memory, Python. Idempotent; persists over reboots.
set -euo pipefail

cloud-init status --wait >/dev/null || true # it holds apt's lock while the machine boots

printf '%s\n' '* soft nofile 65536' '* hard nofile 1048576' | sudo tee /etc/security/limits.d/90-fvae.conf >/dev/null

# Ray's object store and torch's workers share memory there: 60 % of the machine's instead of half.
grep -q '^tmpfs /dev/shm' /etc/fstab ||
    echo 'tmpfs /dev/shm tmpfs rw,nosuid,nodev,size=60% 0 0' | sudo tee -a /etc/fstab >/dev/null
sudo mount -o remount,size=60% /dev/shm

if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    sudo apt-get -o DPkg::Lock::Timeout=600 update -qq
    sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq python3-venv
fi
