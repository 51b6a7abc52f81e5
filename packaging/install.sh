#!/bin/sh
# Installs Streamer from the folder that this script stands in. Run it as root; it may be run again, for a newer version.
#
#   install.sh          program, default configuration, unit and tuning files, and a user to run as
#
# PREFIX=/usr/local  where the program goes        DESTDIR=DIR  everything below DIR, without a user or systemd: for packages
set -eu

here=$(cd "$(dirname "$0")" && pwd)
prefix=${PREFIX:-/usr/local}
root=${DESTDIR:-}
etc="$root/etc/streamer"
units="$root/etc/systemd/system"
share="$root$prefix/share/streamer"

[ -x "$here/streamer" ] || { echo "install.sh: there is no program beside it, in $here" >&2; exit 1; }
if [ -z "$root" ] && [ "$(id -u)" -ne 0 ]; then
    echo "install.sh: must be run as root, or with DESTDIR" >&2
    exit 1
fi

mkdir -p "$root$prefix/bin" "$etc" "$units" "$share"
# A new file in the place of the old one: the program may be running.
cp "$here/streamer" "$root$prefix/bin/streamer.new"
mv "$root$prefix/bin/streamer.new" "$root$prefix/bin/streamer"
cp -R "$here/tuning/." "$share/"
cp "$here/LICENSE" "$here/README.md" "$share/"
cp "$here/streamer.default.toml" "$etc/streamer.default.toml"
if [ ! -e "$etc/streamer.toml" ]; then
    cp "$here/streamer.default.toml" "$etc/streamer.toml"
    # It may come to hold the password of a database.
    chmod 640 "$etc/streamer.toml"
fi
sed "s#/usr/local/bin/streamer#$prefix/bin/streamer#" "$here/tuning/streamer.service" > "$units/streamer.service"

if [ -z "$root" ]; then
    if ! getent passwd streamer > /dev/null; then
        useradd --system --user-group --home-dir /var/lib/streamer --shell /usr/sbin/nologin streamer
    fi
    chgrp streamer "$etc/streamer.toml"
    if command -v systemctl > /dev/null; then
        systemctl daemon-reload
    fi
fi

cat << END
installed $("$here/streamer" --version 2> /dev/null || echo streamer) to $prefix/bin
  $etc/streamer.toml        the configuration: edit it, then \`streamer check -c $etc/streamer.toml\`
  \`streamer doctor -c $etc/streamer.toml\`   what this host lacks
  \`systemctl enable --now streamer\`         starts it
END
