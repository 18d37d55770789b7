"""A server with the very configuration that is shipped, and all that it needs: a CA, passwords, seeds, JWTs.

Everything secret is made anew for each test, and is gone with its folder.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import nats
import nkeys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nats.aio.client import Client

from cdm.model.artifact import node_id
from cdm.secure.example import example, variable
from cdm.store.access import Access
from tests.harness.paths import ROOT
from tests.harness.servers import NatsServer, free_port, temporary_folder
from tests.harness.wire import ANSWER

CONFIG = ROOT / "nats" / "secure.conf"
BEFORE = Path(__file__).with_name("secure_before.conf")
"""What was shipped before nodes had accounts of their own: it goes on working."""
BLOCK = re.compile(r"( *# begin node-1\n)(.*?)( *# end node-1\n)", re.DOTALL)


class Certificates:
    """A CA for one test, a certificate for its server and one for its clients."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "server.pem", folder / "server.key"
        self.client_cert, self.client_key = folder / "client.pem", folder / "client.key"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cdm test CA")])
        self.ca.write_bytes(_pem(self._sign(self._name, self._key, ca=True)))
        self._issue("server", self.cert, self.key)
        self._issue("client", self.client_cert, self.client_key)

    def _issue(self, name: str, certificate: Path, key: Path) -> None:
        own = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate.write_bytes(_pem(self._sign(subject, own, ca=False)))
        form = serialization.PrivateFormat.PKCS8
        key.write_bytes(own.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        here = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        usage = x509.KeyUsage(True, False, False, False, False, ca, ca, False, False)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(here), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(authority, critical=False)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


class Pair:
    """An nkey."""

    def __init__(self, prefix: int) -> None:
        seed = nkeys.encode_seed(os.urandom(32), prefix)
        self.seed = bytes(seed).decode()
        self._pair = nkeys.from_seed(bytearray(seed))
        self.public = bytes(self._pair.public_key).decode()

    def sign(self, data: bytes) -> bytes:
        """Sign."""
        return bytes(self._pair.sign(data))


class Fortress:
    """The secrets of one server, and how each user gets in. Made by `fortress`."""

    def __init__(
        self,
        folder: Path,
        nodes: Sequence[str],
        managers: Sequence[str],
        readers: Sequence[str] = (),
        *,
        before: bool = False,
    ) -> None:
        self.folder = folder
        self.nodes = nodes
        self.managers = managers
        self.readers = readers
        self.tls = Certificates(folder / "tls")
        who = (*managers, *nodes) if before else ("admin", "operator", *managers, *readers, *nodes)
        known = ("admin", "operator") if before else ()
        self.passwords = {name: f"pass-{secrets.token_hex(8)}" for name in known}
        self.pairs = {name: Pair(nkeys.PREFIX_BYTE_USER) for name in who}
        for name, pair in self.pairs.items():
            (folder / f"{name}.nk").write_text(pair.seed, encoding="utf-8")
        self.config = folder / "secure.conf"
        self.config.write_text(with_nodes(nodes) if before else self.text(), encoding="utf-8")
        self.servers: list[NatsServer] = []

    def text(self) -> str:
        """The configuration that is shipped, for these nodes and managers."""
        nodes, managers, readers = (list(map(node_id, each)) for each in (self.nodes, self.managers, self.readers))
        return example(nodes, managers, readers=readers)

    @property
    def server(self) -> NatsServer:
        """The server, or the first of several."""
        return self.servers[0]

    @property
    def url(self) -> str:
        """Where clients connect; of several servers separated by commas."""
        return ",".join(server.url for server in self.servers)

    def env(self, number: int = 0) -> dict[str, str]:
        """What the configuration of a server takes from the environment."""
        return {
            "NATS_STORE": str(self.folder / f"store-{number}"),
            "NATS_TLS_CERT": str(self.tls.cert),
            "NATS_TLS_KEY": str(self.tls.key),
            "NATS_TLS_CA": str(self.tls.ca),
            **{f"{name.upper()}_PASSWORD": password for name, password in self.passwords.items()},
            **{variable(name): pair.public for name, pair in self.pairs.items()},
        }

    @property
    def secrets(self) -> list[str]:
        """Everything that must never be shown."""
        return [*self.passwords.values(), *(pair.seed for pair in self.pairs.values())]

    def access(self, name: str) -> Access:
        """How a user connects."""
        known: dict[str, Any] = {"ca": self.tls.ca, "inbox_prefix": f"_INBOX_{name}"}
        if name in self.passwords:
            return Access(tuple(self.url.split(",")), user=name, password=self.passwords[name], **known)
        return Access(tuple(self.url.split(",")), nkey=self.folder / f"{name}.nk", **known)

    def options(self, name: str, inbox: str = "") -> list[str]:
        """The same as options of the command line."""
        return ["--server", self.url, *self.who(name, inbox)]

    def who(self, name: str, inbox: str = "") -> list[str]:
        """The same without the server."""
        options = ["--tlsca", str(self.tls.ca), "--inbox-prefix", inbox or f"_INBOX_{name}"]
        if name in self.passwords:
            return [*options, "--user", name, "--password", self.passwords[name]]
        return [*options, "--nkey", str(self.folder / f"{name}.nk")]

    @asynccontextmanager
    async def client(self, name: str) -> AsyncIterator[Insider]:
        """A plain client of a user."""
        insider = Insider(name)
        context = ssl.create_default_context(cafile=str(self.tls.ca))
        who = {"user": name, "password": self.passwords[name]} if name in self.passwords else {}
        seed = {} if who else {"nkeys_seed": str(self.folder / f"{name}.nk")}
        client = await nats.connect(
            self.url.split(","),
            tls=context,
            error_cb=insider.on_error,
            inbox_prefix=f"_INBOX_{name}",
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,
            **who,
            **seed,
        )
        insider.client = client
        try:
            yield insider
        finally:
            await client.close()


class Insider:
    """A user with a plain client, who tries things. Made by `Fortress.client`."""

    client: Client

    def __init__(self, name: str) -> None:
        self.name = name
        self.refusals: list[str] = []

    async def on_error(self, error: Exception) -> None:
        """Take note of what the server refuses."""
        if "permissions violation" in str(error).lower():
            self.refusals.append(str(error))

    async def may_publish(self, subject: str, payload: bytes = b"", reply: str = "") -> bool:
        """Send a message; returns whether the server took it."""
        before = len(self.refusals)
        await self.client.publish(subject, payload, reply=reply)
        await self.settle()
        return not any(f'publish to "{subject.lower()}"' in each for each in self.refusals[before:])

    async def may_subscribe(self, subject: str) -> bool:
        """Subscribe; returns whether the server agreed."""
        before = len(self.refusals)
        subscription = await self.client.subscribe(subject)
        await self.settle()
        refused = any(f'subscription to "{subject.lower()}"' in each for each in self.refusals[before:])
        if not refused:
            await subscription.unsubscribe()
        return not refused

    async def settle(self) -> None:
        """Wait until the server has taken all that was sent."""
        # The client's first ping may go past what waits to be sent; its second one cannot.
        await self.client.flush()
        await self.client.flush()

    async def ask(self, subject: str, body: object = None) -> Any:
        """Call the server; returns its decoded answer."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        return json.loads((await self.client.request(subject, payload, timeout=ANSWER)).data)


def with_nodes(nodes: Sequence[str]) -> str:
    """The configuration of before with its block for node-1 copied for every node, as it tells its readers to do."""
    text = BEFORE.read_text(encoding="utf-8")
    found = BLOCK.search(text)
    assert found is not None
    copies = "".join(
        found[0].replace("node-1", node).replace("NODE_1", node.upper().replace("-", "_")) for node in nodes
    )
    return text.replace(found[0], copies)


@asynccontextmanager
async def fortress(
    folder: Path,
    *nodes: str,
    managers: Sequence[str] = ("manager-1",),
    readers: Sequence[str] = (),
    before: bool = False,
    size: int = 1,
) -> AsyncIterator[Fortress]:
    """Servers with the shipped configuration, for the time of the ``with`` block.

    Args:
        folder: where seeds and certificates go.
        nodes: nodes that only run slices.
        managers: nodes that manage.
        readers: users that only read.
        before: with the configuration that was shipped before, whose managers are one user, ``manager``.
        size: how many servers.
    """
    made = Fortress(folder, nodes or ("node-1",), ("manager",) if before else managers, readers, before=before)
    # As it is shipped where that is enough.
    shipped = not before and not readers and (*made.nodes, *made.managers) == ("node-1", "manager-1")
    config = ["-c", str(CONFIG if shipped else made.config)]
    with ExitStack() as stack:
        routes = [free_port() for _ in range(size)]
        urls = ",".join(f"nats://127.0.0.1:{route}" for route in routes)
        for number, route in enumerate(routes):
            cluster = ["-n", f"s{number}", "--cluster_name", "test", "--cluster", f"nats://127.0.0.1:{route}"]
            arguments = [*config, *([*cluster, "--routes", urls] if size > 1 else ())]
            own = stack.enter_context(temporary_folder())
            server = NatsServer(own, jetstream=False, arguments=arguments, env=made.env(number))
            stack.callback(server.kill)
            made.servers.append(server)
            await server.start()
        yield made


# JWTs


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwt(
    issuer: Pair, subject: Pair, name: str, kind: str, claims: Mapping[str, Any], expires: int | None = None
) -> str:
    """A signed JWT as NATS has them."""
    body = {
        "iat": int(time.time()),
        "iss": issuer.public,
        "sub": subject.public,
        "name": name,
        "nats": {**claims, "type": kind, "version": 2},
    }
    if expires is not None:
        body["exp"] = int(time.time()) + expires
    digest = hashlib.new("sha512_256", json.dumps(body).encode()).digest()
    body["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    head = _encoded(b'{"typ":"JWT","alg":"ed25519-nkey"}')
    signed = f"{head}.{_encoded(json.dumps(body).encode())}"
    return f"{signed}.{_encoded(issuer.sign(signed.encode()))}"


UNLIMITED = {
    "subs": -1,
    "data": -1,
    "payload": -1,
    "imports": -1,
    "exports": -1,
    "conn": -1,
    "leaf": -1,
    "wildcards": True,
    "mem_storage": -1,
    "disk_storage": -1,
    "streams": -1,
    "consumer": -1,
}
STORED = ("mem_storage", "disk_storage", "streams", "consumer")


class JwtFortress:
    """An operator and an account; their users come in with credentials files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._operator, self._account = Pair(nkeys.PREFIX_BYTE_OPERATOR), Pair(nkeys.PREFIX_BYTE_ACCOUNT)
        operator = jwt(self._operator, self._operator, "test", "operator", {})
        account = jwt(self._operator, self._account, "CDM", "account", {"limits": UNLIMITED})
        system = Pair(nkeys.PREFIX_BYTE_ACCOUNT)
        beside = {name: -1 for name in UNLIMITED if name not in STORED} | {"wildcards": True}
        own = jwt(self._operator, system, "SYS", "account", {"limits": beside})
        self.config = folder / "jwt.conf"
        self.config.write_text(
            f'jetstream {{ store_dir: "{folder / "store"}" }}\noperator: {operator}\nresolver: MEMORY\n'
            f"system_account: {system.public}\n"
            f"resolver_preload: {{ {self._account.public}: {account}, {system.public}: {own} }}\n",
            encoding="utf-8",
        )
        self.secrets: list[str] = []

    def creds(self, name: str, permissions: Mapping[str, Any], expires: int | None = None) -> Path:
        """A credentials file for a new user, good for so many seconds."""
        user = Pair(nkeys.PREFIX_BYTE_USER)
        claims = {**permissions, "subs": -1, "data": -1, "payload": -1}
        token = jwt(self._account, user, name, "user", claims, expires)
        self.secrets += [token, user.seed]
        file = self.folder / f"{name}.creds"
        file.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n",
            encoding="utf-8",
        )
        return file


def permissions_of_node(node: str) -> dict[str, Any]:
    """The permissions that the configuration of before gives to a node, as a JWT has them."""
    found = BLOCK.search(BEFORE.read_text(encoding="utf-8"))
    assert found is not None
    block = re.sub(r"#.*", "", found[2].replace("node-1", node))
    publish, subscribe = block.split("subscribe:")
    quoted = re.compile(r'"([^"]+)"')
    most, seconds = map(int, re.findall(r'max: (\d+), expires: "(\d+)s"', subscribe)[0])
    return {
        "pub": {"allow": quoted.findall(publish)},
        "sub": {"allow": quoted.findall(subscribe.partition("]")[0])},
        "resp": {"max": most, "ttl": seconds * 10**9},
    }
