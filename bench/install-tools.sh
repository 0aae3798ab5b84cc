#!/usr/bin/env bash
# Install nginx, whose stub is never the bottleneck, and wrk, for the benchmarks.
set -euo pipefail
missing=()
[ -x /usr/sbin/nginx ] && [ -f /usr/lib/nginx/modules/ngx_http_echo_module.so ] ||
    missing+=(nginx-light libnginx-mod-http-echo)
command -v wrk >/dev/null || missing+=(wrk)
[ ${#missing[@]} -eq 0 ] && exit 0
command -v apt-get >/dev/null || {
    echo "make bench needs ${missing[*]}, as Debian calls them; install them, and run it again." >&2
    exit 1
}
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
# Keep Debian from starting nginx on port 80; the stub has its own configuration.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -qq --no-install-recommends -y "${missing[@]}"
