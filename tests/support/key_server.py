"""An identity provider: key pairs, and a server that publishes a JWK Set of the public keys."""

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

ALGORITHMS = ("RS256", "ES256", "EdDSA")
KINDS = {"RS256": RSAKey, "ES256": ECKey}


class AnySignature(JWSRegistry):
    """Return a registry of all algorithms and headers, which doesn't warn about `EdDSA`."""

    def __init__(self) -> None:
        super().__init__(strict_check_header=False)

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]


def signed(key: Key, algorithm: str, headers: dict[str, Any], claims: dict[str, Any]) -> str:
    """Sign a token with joserfc, since Herald verifies with another library."""
    return jwt.encode({"alg": algorithm, **headers}, claims, key, registry=AnySignature())


@dataclass(frozen=True)
class KeyPair:
    """A private key, and the JWK that publishes its public key."""

    algorithm: str
    kid: str
    private: Any = field(repr=False)

    @classmethod
    def new(cls, algorithm: str, kid: str) -> "KeyPair":
        match algorithm:
            case "RS256":
                return cls(algorithm, kid, rsa.generate_private_key(65537, 2048))
            case "ES256":
                return cls(algorithm, kid, ec.generate_private_key(ec.SECP256R1()))
            case _:
                return cls(algorithm, kid, ed25519.Ed25519PrivateKey.generate())

    def jwk(self, **more: Any) -> dict[str, Any]:
        published = self.key.as_dict(private=False)
        return {**published, "kid": self.kid, "use": "sig", "alg": self.algorithm, **more}

    def token(self, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        payload = {"sub": "alice", "exp": 9_999_999_999, **claims}
        headers = {"kid": self.kid} if headers is None else headers
        return signed(self.key, self.algorithm, headers, payload)

    @property
    def key(self) -> Any:
        """Return the private key in joserfc's form."""
        return KINDS.get(self.algorithm, OKPKey)(self.private, self.private)


def serialized(pairs: Iterable[KeyPair]) -> Iterator[bytes]:
    """Yield each public key in each format that PyJWT recognizes."""
    for pair in pairs:
        public = pair.private.public_key()
        for encoding in (Encoding.PEM, Encoding.DER):
            yield public.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        yield public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).strip()
        yield json.dumps(pair.jwk()).encode()


class KeyServer(ThreadingHTTPServer):
    """Serves `body` with `status`, and counts the requests."""

    daemon_threads = True

    def __init__(self, scheme: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"{scheme}://localhost:{self.server_port}/.well-known/jwks.json?v=1"
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: bytes = b""
        self.requests = 0
        self.hold = threading.Event()  # cleared while answers are held back
        self.hold.set()

    def publish(self, *pairs: KeyPair, also: tuple[Any, ...] = ()) -> None:
        self.body = json.dumps({"keys": [*also, *(pair.jwk() for pair in pairs)]}).encode()


class _Handler(BaseHTTPRequestHandler):
    server: KeyServer

    def do_GET(self) -> None:
        self.server.requests += 1
        self.server.hold.wait(10)
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.body)))
        with contextlib.suppress(ConnectionError):  # the client may have given up
            self.end_headers()
            self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def key_server(tls: SSLContext | None = None) -> Iterator[KeyServer]:
    """Run a server in its own thread, on a free port of the loopback address."""
    server = KeyServer("http" if tls is None else "https")
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()
