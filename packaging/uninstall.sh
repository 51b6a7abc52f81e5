#!/bin/sh
# Removes what install.sh put there. Configuration and data stay, unless told otherwise.
#
#   uninstall.sh [--purge]     --purge: also /etc/streamer, /var/lib/streamer and the user
set -eu

prefix=${PREFIX:-/usr/local}
root=${DESTDIR:-}
purge=${1:-}
case "$purge" in '' | --purge) ;; *) sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac
if [ -z "$root" ] && [ "$(id -u)" -ne 0 ]; then
    echo "uninstall.sh: must be run as root, or with DESTDIR" >&2
    exit 1
fi

if [ -z "$root" ] && command -v systemctl > /dev/null; then
    systemctl disable --now streamer 2> /dev/null || true
fi
rm -f "$root$prefix/bin/streamer" "$root/etc/systemd/system/streamer.service" "$root/etc/streamer/streamer.default.toml"
rm -rf "$root$prefix/share/streamer"
if [ "$purge" = --purge ]; then
    rm -rf "$root/etc/streamer" "$root/var/lib/streamer"
    if [ -z "$root" ] && getent passwd streamer > /dev/null; then
        userdel streamer
    fi
fi
if [ -z "$root" ] && command -v systemctl > /dev/null; then
    systemctl daemon-reload
fi
