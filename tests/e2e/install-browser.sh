#!/usr/bin/env bash
# Install Chromium from the packages of Debian or Ubuntu, for the console's tests.
set -euo pipefail
[ -x "${CHROMIUM:-/usr/bin/chromium}" ] && exit 0
command -v apt-get >/dev/null || {
    echo "make e2e needs Chromium; install it, and say where it is with CHROMIUM=/path." >&2
    exit 1
}
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -qq --no-install-recommends -y chromium fonts-dejavu-core >&2
