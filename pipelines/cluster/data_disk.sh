#!/usr/bin/env bash
# Mounts a disk for good, and makes a file system on it only if there is nothing on it.
#
#   data_disk.sh DEVICE FOLDER OWNER [SECONDS]    to wait for the device, 60 by default
set -euo pipefail

device=$1 folder=$2 owner=$3 wait=${4:-60} fstab=${LIBMOUNT_FSTAB:-/etc/fstab}

for _ in $(seq "$wait"); do [ -e "$device" ] && break || sleep 1; done
[ -e "$device" ] || { echo "error: $device: the data disk is not attached" >&2; exit 2; }

# blkid's status 2: it looked at the disk and recognised nothing. Anything else is an error, or data.
status=0
type=$(blkid --probe --output value --match-tag TYPE "$device") || status=$?
if [ "$status" -eq 2 ]; then
    first=$(od --read-bytes=1048576 --address-radix=n "$device" | tr -d ' \n0*')
    [ -z "$first" ] || { echo "error: $device: holds something that is no file system; it is left alone" >&2; exit 2; }
    mkfs.ext4 -q -L fvae-data "$device"
elif [ "$status" -ne 0 ] || [ "$type" != ext4 ]; then
    echo "error: $device: holds ${type:-something unreadable}, not ext4; it is left alone" >&2
    exit 2
fi

mkdir -p "$folder"
mountpoint -q "$folder" && exit 0
[ -z "$(ls -A "$folder")" ] || { echo "error: $folder: is not empty, and its disk is not mounted" >&2; exit 2; }
uuid=$(blkid --probe --output value --match-tag UUID "$device")
grep -q "UUID=$uuid " "$fstab" 2>/dev/null ||
    echo "UUID=$uuid $folder ext4 defaults,nofail,x-systemd.device-timeout=60s 0 2" >>"$fstab"
mount --source "$device" --target "$folder"
chown "$owner" "$folder"
chmod 700 "$folder"
rmdir "$folder/lost+found" 2>/dev/null || true
