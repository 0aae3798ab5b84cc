"""A stub of `@connections` that is never the bottleneck: nginx, with TLS, on its own core.

`/0ms/…` answers 200 at once, `/10ms/…` after ten milliseconds (by nginx's echo module).
"""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

NGINX = "/usr/sbin/nginx"
CLIENT_CORE, STUB_CORE = 0, 1
START_SECONDS = 10.0

CONFIGURATION = """
load_module /usr/lib/nginx/modules/ngx_http_echo_module.so;
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 65536;
pid {folder}/nginx.pid; error_log {folder}/error.log warn;
events {{ worker_connections 8192; use epoll; }}
http {{
  log_format calls "$msec $uri"; access_log {log}; server_tokens off; keepalive_requests 1000000000;
  client_body_buffer_size 256k; client_max_body_size 1m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl backlog=4096;
    ssl_certificate {folder}/chain.pem; ssl_certificate_key {folder}/key.pem;
    ssl_session_cache shared:sessions:10m;
    location /0ms/ {{ return 200; }}
    location /10ms/ {{ echo_read_request_body; echo_sleep 0.01; echo -n ""; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Stub:
    """A running stub."""

    address: str
    """`host:port`."""
    authority: Path
    """The certificate authority that clients must trust."""
    certificate: Path
    """The certificate for 127.0.0.1, and its `key`."""
    key: Path
    log: Path
    """The access log: each line has a request's time (epoch seconds) and its path."""

    def endpoint(self, latency_ms: int) -> str:
        """Return the URL of the endpoint that answers after `latency_ms`, which is 0 or 10."""
        return f"https://{self.address}/{latency_ms}ms"


@contextmanager
def stub(*, log: bool = False) -> Iterator[Stub]:
    """Run the stub on a free port of 127.0.0.1 while the context lasts.

    It is pinned to its own core, unless it writes an access log.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx's worker doesn't run as root
        authority = trustme.CA()
        server = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(str(folder / "authority.pem"))
        server.private_key_pem.write_to_path(str(folder / "key.pem"))
        for certificate in server.cert_chain_pems:
            certificate.write_to_path(str(folder / "chain.pem"), append=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        requests = folder / "requests.log"
        access_log = f"{requests} calls buffer=256k flush=100ms" if log else "off"
        (folder / "nginx.conf").write_text(
            CONFIGURATION.format(folder=folder, port=port, log=access_log)
        )
        process = subprocess.Popen(
            [NGINX, "-p", name, "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log"]
        )
        try:
            if not log:
                pin(STUB_CORE, process.pid)
            _wait_until_ready(port, process, folder / "error.log")
            yield Stub(
                f"127.0.0.1:{port}",
                folder / "authority.pem",
                folder / "chain.pem",
                folder / "key.pem",
                requests,
            )
        finally:
            process.terminate()
            process.wait()


def pin(core: int, process: int = 0) -> None:
    """Pin a process (by default this one) to a core, if the system can do that."""
    if hasattr(os, "sched_setaffinity") and core < (os.cpu_count() or 1):
        os.sched_setaffinity(process, {core})


def _wait_until_ready(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"nginx did not start: {log.read_text()}") from None
            time.sleep(0.02)
