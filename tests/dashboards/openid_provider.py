"""A strict OpenID provider on a socket, written from the specifications, without the portal's code or libraries.

OpenID Connect Core 1.0 (3.1), Discovery 1.0, RFC 6749 (4.1, 2.3.1), RFC 7636, RFC 7519, RFC 9207. It is wrong only
where a test makes it so: what `claims`, `header`, `metadata`, `answers` and `user_info` hold is written over its own.
"""

import base64
import hashlib
import json
import secrets
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

CLIENT, SECRET = "portal of acme", "s3cret:with%signs"


def base64url(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Provider:
    """One client, one key (or a new one after `turn_key`), and whoever `person` says has signed in."""

    def __init__(self, issuer, redirect_uri, now):
        self.issuer, self.redirect_uri, self.now = issuer, redirect_uri, now
        self.person = {"sub": "u-1", "email": "olga@acme.example", "email_verified": True}
        self.in_token = True
        self.codes, self.accesses, self.asked = {}, {}, []
        self.claims, self.header, self.metadata, self.answers, self.user_info = {}, {}, {}, {}, {}
        self.sign = self.signed_by_key
        self.turn_key()

    def turn_key(self):
        self.key, self.kid = rsa.generate_private_key(public_exponent=65537, key_size=2048), secrets.token_hex(4)

    # ---- what it answers: (status, headers, object) -----------------------------------------------------------------

    def configuration(self):
        at = self.issuer
        return {
            "issuer": at,
            "authorization_endpoint": f"{at}/authorize",
            "token_endpoint": f"{at}/token",
            "userinfo_endpoint": f"{at}/userinfo",
            "jwks_uri": f"{at}/jwks",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        } | self.metadata

    def jwks(self):
        public = self.key.public_key().public_numbers()
        n, e = (base64url(it.to_bytes((it.bit_length() + 7) // 8, "big")) for it in (public.n, public.e))
        return {"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid, "n": n, "e": e}]}

    def authorize(self, query):
        """The address that the browser is sent back to."""
        assert query["response_type"] == "code" and query["client_id"] == CLIENT, query
        assert query["redirect_uri"] == self.redirect_uri, query  # compared as text: RFC 9700, 2.1
        assert "openid" in query["scope"].split() and query["code_challenge_method"] == "S256", query
        assert len(query["code_challenge"]) == 43 and len(query["state"]) >= 22 and len(query["nonce"]) >= 22, query
        code = secrets.token_urlsafe(24)
        self.codes[code] = query
        answer = {"code": code, "state": query["state"], "iss": self.issuer} | self.answers
        return f"{self.redirect_uri}?" + urlencode({name: it for name, it in answer.items() if it is not None})

    def token(self, form, authorization):
        kind, _, both = authorization.partition(" ")
        client, _, secret = base64.b64decode(both).decode().partition(":") if kind == "Basic" else ("", "", "")
        if (unquote_plus(client), unquote_plus(secret)) != (CLIENT, SECRET):
            return 401, {"error": "invalid_client"}
        asked = self.codes.pop(form.get("code"), None)  # a code is good once: RFC 6749, 4.1.2
        challenge = base64url(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if (
            form.get("grant_type") != "authorization_code"
            or asked is None
            or form.get("redirect_uri") != asked["redirect_uri"]
            or challenge != asked["code_challenge"]
        ):
            return 400, {"error": "invalid_grant"}
        at = int(self.now().timestamp())
        own = self.person if self.in_token else {"sub": self.person["sub"]}
        claims = {"iss": self.issuer, "aud": CLIENT, "iat": at, "exp": at + 300, "nonce": asked["nonce"]} | own
        claims = {name: it for name, it in (claims | self.claims).items() if it is not None}
        access = secrets.token_urlsafe(24)
        self.accesses[access] = self.person
        header = {"alg": "RS256", "typ": "JWT", "kid": self.kid} | self.header
        signing = ".".join(base64url(json.dumps(it).encode()) for it in (header, claims))
        token = f"{signing}.{base64url(self.sign(signing.encode()))}"
        return 200, {"access_token": access, "token_type": "Bearer", "expires_in": 300, "id_token": token}

    def signed_by_key(self, content):
        return self.key.sign(content, padding.PKCS1v15(), hashes.SHA256())

    def userinfo(self, authorization):
        person = self.accesses.get(authorization.removeprefix("Bearer "))
        return (401, {"error": "invalid_token"}) if person is None else (200, person | self.user_info)


@contextmanager
def serving(redirect_uri, now):
    """The provider, at its issuer's address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            at = urlsplit(self.path)
            provider.asked.append(at.path)
            if at.path == "/.well-known/openid-configuration":
                return self._say(200, provider.configuration())
            if at.path == "/jwks":
                return self._say(200, provider.jwks())
            if at.path == "/userinfo":
                return self._say(*provider.userinfo(self.headers.get("Authorization", "")))
            if at.path == "/authorize":
                self.send_response(302)
                self.send_header("Location", provider.authorize(_one_each(at.query)))
                return self.end_headers()
            return self._say(404, {})

        def do_POST(self):
            provider.asked.append(self.path)
            form = _one_each(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self._say(*provider.token(form, self.headers.get("Authorization", "")))

        def _say(self, status, found):
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider = Provider(f"http://127.0.0.1:{server.server_port}", redirect_uri, now)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield provider
        server.shutdown()
        thread.join()


def _one_each(query):
    found = parse_qs(query, strict_parsing=True, keep_blank_values=True)
    assert all(len(it) == 1 for it in found.values()), query  # RFC 6749, 3.1: none more than once
    return {name: it[0] for name, it in found.items()}
