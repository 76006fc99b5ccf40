#!/usr/bin/env python3
"""A small backend in front of goim: an HTTPS login that issues tokens, and calls to goim.

It owns users and passwords, tokens (JSON Web Tokens, HS256), and the calls of the backend to goim (push,
end sessions). It does not own connections: clients present their token to goim themselves.

    POST /login    {"user": "alice", "password": ".."}   ->  {"token": "..", "mid": 1, "expires_in": 600}
    POST /refresh  Authorization: Bearer TOKEN            ->  the same, for a session that stays (operation 30)
    POST /push      Bearer, {"room": "live://1000", "text": "hello"}   pushes to the room, operation 1000
    POST /logout   Bearer                                 ends all sessions of the member

Standard library only. One process, users in a file: an example, not a product.
"""

import argparse
import base64
import getpass
import hashlib
import hmac
import http.server
import json
import os
import secrets
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

# The largest request body; larger ones are refused.
BODY_BYTES_MAX = 64 * 1024
# A client that sends nothing occupies a thread for at most this many seconds.
IDLE_TIMEOUT = 10

EXAMPLES = """\
examples:
  export LOGIN_TOKEN_SECRET=$(openssl rand -hex 32)
  login.py add alice --mid 1 --allow 'live://*'
  login.py serve --cert tls.crt --key tls.key

LOGIN_TOKEN_SECRET is one of goim's logic.identity.jwt.secrets, LOGIN_GOIM_API_KEY one of its logic.http.api_keys.
"""


class Refused(Exception):
    """A request whose status is not 200."""

    def __init__(self, status, why):
        super().__init__(why)
        self.status = status


def password_hash(password, salt):
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1).hex()


# Checked for unknown users, so that they take as long as a wrong password.
UNKNOWN_USER = {"salt": "00" * 16, "password": "00" * 64}


class Users:
    """A file: {"alice": {"mid": 1, "salt": "..", "password": "..", "rooms_allowed": [..]}}."""

    def __init__(self, path):
        self.path = path

    def read(self):
        try:
            with open(self.path, encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return {}

    def add(self, name, mid, password, rooms):
        users = self.read()
        salt = secrets.token_bytes(16)
        users[name] = {
            "mid": mid,
            "salt": salt.hex(),
            "password": password_hash(password, salt),
            "rooms_allowed": rooms,
        }
        # Replaced atomically, readable by the owner only.
        new = f"{self.path}.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(users, file, indent=1)
        os.replace(new, self.path)

    def check(self, name, password):
        user = self.read().get(name, UNKNOWN_USER)
        given = password_hash(password, bytes.fromhex(user["salt"]))
        if not hmac.compare_digest(given, user["password"]):
            raise Refused(401, "wrong name or password")
        return user

    def with_mid(self, mid):
        for user in self.read().values():
            if user["mid"] == mid:
                return user
        raise Refused(401, "this member does not exist")


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Tokens:
    """JSON Web Tokens with HS256, as goim verifies them."""

    def __init__(self, secret, audience, lifetime):
        self.secret = secret.encode()
        self.audience = audience
        self.lifetime = lifetime

    def sign(self, signed):
        return base64url(hmac.new(self.secret, signed.encode(), hashlib.sha256).digest())

    def issue(self, user):
        claims = {
            "mid": user["mid"],
            "aud": self.audience,
            "exp": int(time.time()) + self.lifetime,
            "rooms_allowed": user["rooms_allowed"],
        }
        parts = ({"alg": "HS256", "typ": "JWT"}, claims)
        signed = ".".join(base64url(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
        return {"token": f"{signed}.{self.sign(signed)}", "mid": user["mid"], "expires_in": self.lifetime}

    def claims(self, token):
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(self.sign(signed).encode(), signature.encode()):
            raise Refused(401, "invalid token")
        body = signed.partition(".")[2]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if claims["exp"] < time.time():
            raise Refused(401, "the token has expired: log in again")
        return claims


class Goim:
    """goim's HTTP API."""

    def __init__(self, url, api_key):
        self.url = url
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def post(self, target, body):
        request = urllib.request.Request(self.url + target, body, self.headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                reply = json.load(response)
        except (urllib.error.URLError, TimeoutError, ValueError) as error:
            raise Refused(502, f"goim at {self.url}: {error}") from error
        if reply["code"] != 0:
            raise Refused(502, f"goim: {reply['message']}")

    def push(self, room, text):
        kind, _, name = room.partition("://")
        query = urllib.parse.urlencode({"operation": 1000, "type": kind, "room": name})
        self.post(f"/goim/push/room?{query}", text.encode())

    def end_sessions(self, mid):
        self.post("/v1/sessions/end", json.dumps({"of": {"mids": [mid]}, "reason": "revoked"}).encode())


def is_allowed(room, patterns):
    return any(room == name or name.endswith("*") and room.startswith(name[:-1]) for name in patterns)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_TIMEOUT
    users = tokens = goim = None

    def setup(self):
        # In the connection's thread, so that a silent client does not delay the accept loop.
        self.request.settimeout(IDLE_TIMEOUT)
        self.request.do_handshake()
        super().setup()

    def do_POST(self):
        actions = {"/login": self.login, "/refresh": self.refresh, "/push": self.push, "/logout": self.logout}
        try:
            body = self.body()
            action = actions.get(self.path)
            if action is None:
                raise Refused(404, f"unknown path; use {', '.join(actions)}")
            self.answer(200, action(body))
        except Refused as refused:
            self.answer(refused.status, {"error": str(refused)})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.answer(400, {"error": f"invalid request: {error!r}"})

    def body(self):
        length = int(self.headers.get("Content-Length", 0))
        if not 0 <= length <= BODY_BYTES_MAX:
            self.close_connection = True
            raise Refused(413, f"at most {BODY_BYTES_MAX} bytes")
        return self.rfile.read(length)

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def bearer(self):
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        if kind != "Bearer":
            raise Refused(401, "Authorization: Bearer with the token of /login is required")
        return self.tokens.claims(token)

    def login(self, body):
        given = json.loads(body)
        return self.tokens.issue(self.users.check(given["user"], given["password"]))

    def refresh(self, _):
        return self.tokens.issue(self.users.with_mid(self.bearer()["mid"]))

    def push(self, body):
        claims = self.bearer()
        given = json.loads(body)
        if not is_allowed(given["room"], claims["rooms_allowed"]):
            raise Refused(403, "this room is not allowed")
        self.goim.push(given["room"], json.dumps({"from": claims["mid"], "text": given["text"]}))
        return {}

    def logout(self, _):
        self.goim.end_sessions(self.bearer()["mid"])
        return {}


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        # Clients without TLS, and closed connections, are not worth a log entry.
        if not isinstance(error, OSError):
            super().handle_error(request, client_address)


def serve(arguments):
    secret = os.environ.get("LOGIN_TOKEN_SECRET", "")
    if len(secret) < 32:
        sys.exit("LOGIN_TOKEN_SECRET: at least 32 characters, the same as goim's; openssl rand -hex 32 generates one")
    Handler.users = Users(arguments.users)
    Handler.tokens = Tokens(secret, arguments.audience, arguments.lifetime)
    Handler.goim = Goim(arguments.goim, os.environ.get("LOGIN_GOIM_API_KEY"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(arguments.cert, arguments.key)
    except OSError as error:
        sys.exit(f"{arguments.cert}, {arguments.key}: {error}")
    host, _, port = arguments.listen.rpartition(":")
    server = Server((host, int(port)), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print(f"login at https://{host}:{server.server_port}", flush=True)
    server.serve_forever()


def add(arguments):
    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    if not password:
        sys.exit("a password is required")
    Users(arguments.users).add(arguments.name, arguments.mid, password, arguments.allow)


def main():
    parser = argparse.ArgumentParser(
        description="A login service in front of goim.", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", default="users.json", help="file with the users (%(default)s)")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("serve", help="serve HTTPS")
    command.add_argument("--listen", default="127.0.0.1:8443", help="address and port (%(default)s)")
    command.add_argument("--cert", required=True, help="certificate chain, PEM")
    command.add_argument("--key", required=True, help="its private key, PEM")
    command.add_argument("--goim", default="http://127.0.0.1:3111", help="goim's HTTP API (%(default)s)")
    command.add_argument("--audience", default="chat", help="audience of tokens: one of goim's logic.identity.jwt.audience (%(default)s)")
    command.add_argument("--lifetime", type=int, default=600, help="seconds until a token expires (%(default)s)")
    command.set_defaults(run=serve)
    command = commands.add_parser("add", help="add a user or set a new password, read from standard input")
    command.add_argument("name")
    command.add_argument("--mid", type=int, required=True, help="id of the member")
    command.add_argument("--allow", action="append", default=[], help="allowed rooms: a name, or a prefix followed by *")
    command.set_defaults(run=add)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
