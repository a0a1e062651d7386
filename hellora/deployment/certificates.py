"""Make keys and certificates: a CA of one's own, the server's certificate, a key pair per client.

ca.crt, ca.key           the CA; every client checks the server against ca.crt, and ca.key stays where it is
server.crt, server.key   what the server shows
clients/NAME             a client's private key, which proves that it is this client; NAME.pub is for the server
revoked/N-NAME.pub       clients' keys that the server is to shut out
"""

import base64
import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hellora import deployment
from hellora.core.errors import InputError

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise InputError("this needs the packages of the extra `flower`: pip install 'hellora[flower]'") from error

ALWAYS = ("localhost", "127.0.0.1")  # the server's own commands and processes reach it so
DAYS = 365  # of a server's certificate, which can be renewed
AUTHORITY_DAYS = 3650  # of the CA, which every client has a copy of
NAME = re.compile(deployment.NAME)


@dataclass(frozen=True)
class Made:
    """Says what `make` has added to a folder."""

    new_authority: bool
    clients: tuple[str, ...]


def make(folder: Path, hosts: Sequence[str], clients: Sequence[str], days: int = DAYS) -> Made:
    """Fill a new folder, with a server's certificate for so many days; where one holds a CA already, only add clients
    that it lacks.

    Raises:
        InputError: a name is not one, the folder holds something else, or all of it exists already.
    """
    check_names(clients)
    names = [general_name(host) for host in dict.fromkeys((*hosts, *ALWAYS))]
    begun = (folder / "ca.crt").exists()
    if begun:
        check_additions(folder, hosts, clients)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and holds no CA of hellora: choose a new folder")
    try:
        (folder / "clients").mkdir(parents=True, exist_ok=True)
        if not begun:
            make_server(folder, names, hosts[0] if hosts else ALWAYS[0], days)
        for name in clients:
            make_client(folder, name)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    return Made(not begun, tuple(clients))


def check_names(clients: Sequence[str]) -> None:
    """Raise InputError unless each client has a name, and one of its own."""
    for name in clients:
        if not NAME.fullmatch(name) or name.endswith(".pub"):
            raise InputError(f"--client {name!r}: a name has letters, digits and . _ - only, such as 'hospital'")
    for name in clients:
        if clients.count(name) > 1:
            raise InputError(f"--client {name} is given twice")


def check_additions(folder: Path, hosts: Sequence[str], clients: Sequence[str]) -> None:
    """Raise InputError unless a folder that holds a CA only gets clients that it lacks."""
    if hosts:
        raise InputError(
            f"{folder} has a server's certificate already: leave out --host to add clients, or choose a new folder"
        )
    if known := [name for name in clients if any(key_paths(folder, name)[i].exists() for i in (0, 1))]:
        raise InputError(f"{folder} has a key of {known[0]} already, which is kept: choose another name or folder")
    if not clients:
        raise InputError(f"{folder} holds a CA already: add clients with --client, or choose another folder")


def key_paths(folder: Path, client: str) -> tuple[Path, Path]:
    """Return the paths of a client's private and public key."""
    return folder / "clients" / client, folder / "clients" / f"{client}.pub"


def general_name(host: str) -> x509.GeneralName:
    """Read an IP address, or else a DNS name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"[A-Za-z0-9*]([A-Za-z0-9.-]*[A-Za-z0-9])?", host):
        raise InputError(f"--host {host!r} is no host name or IP address (without port)")
    return x509.DNSName(host)


def make_server(folder: Path, names: Sequence[x509.GeneralName], host: str, days: int) -> None:
    """Make a CA, and a server's certificate that it has signed. The CA's certificate comes last: it stands for all."""
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer = subject_of("hellora CA")
    ca = (
        started(issuer, issuer, authority.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA384())
    )
    alternatives = x509.SubjectAlternativeName(names)
    certificate = signed(subject_of(host[:64]), ca, authority, server.public_key(), alternatives, days)
    write_new(folder / "ca.key", private_bytes(authority, forms.PrivateFormat.PKCS8), 0o600)
    write_new(folder / "server.key", private_bytes(server, forms.PrivateFormat.PKCS8), 0o600)
    write_new(folder / "server.crt", certificate.public_bytes(forms.Encoding.PEM), 0o644)
    write_new(folder / "ca.crt", ca.public_bytes(forms.Encoding.PEM), 0o644)


def signed(
    subject: x509.Name,
    ca: x509.Certificate,
    authority: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    names: x509.SubjectAlternativeName,
    days: int = DAYS,
) -> x509.Certificate:
    """Make a server's certificate, which ends when its CA does at the latest."""
    left = (ca.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days
    return (
        started(subject, ca.subject, key, min(days, left))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA384())
    )


def make_client(folder: Path, name: str) -> None:
    """Make a client's key pair."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    private_path, public_path = key_paths(folder, name)
    write_new(private_path, private_bytes(key, forms.PrivateFormat.OpenSSH), 0o600)
    write_new(public_path, public + f" {name}\n".encode(), 0o644)


def subject_of(name: str) -> x509.Name:
    """Make the name that a certificate is for."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def started(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    """Begin a certificate, valid from an hour ago, for clocks differ."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def key_usage(signs_certificates: bool) -> x509.KeyUsage:
    """Say what a key may be used for."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def private_bytes(key: ec.EllipticCurvePrivateKey, form: forms.PrivateFormat) -> bytes:
    """Write a private key as a file has it."""
    return key.private_bytes(forms.Encoding.PEM, form, forms.NoEncryption())


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that must not exist yet; it never has wider permissions than `mode`."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


# ----------------------------------------------------------------------------------------------- reading what was given


def check_private_key(path: Path, where: str) -> None:
    """Raise InputError where the file is no private key that a client can prove itself with."""
    if not path.is_file():
        raise InputError(f"{where}: there is no file {path}")
    try:
        content = path.read_bytes()
        key = forms.load_ssh_private_key(content, password=None)
    except OSError as error:
        raise InputError(f"{where}: cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        hint = " (it looks like the public one)" if content.startswith((b"ecdsa-", b"ssh-")) else ""
        raise InputError(
            f"{where}: {path} is no private key in OpenSSH format without password{hint}: give the file without .pub "
            f"that `hellora certificates` made"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{where}: {path} is no EC key, which Flower asks for: make one with `hellora certificates`")


def check_certificate(path: Path, where: str) -> None:
    """Raise InputError where the file is no certificate."""
    if not path.is_file():
        raise InputError(f"{where}: there is no file {path}")
    try:
        x509.load_pem_x509_certificates(path.read_bytes())
    except (ValueError, OSError) as error:
        raise InputError(f"{where}: {path} is no certificate: give the server's ca.crt") from error


def check_server(folder: Path) -> None:
    """Raise InputError where the folder lacks a file of the server, or its certificate has ended."""
    for name in ("ca.crt", "server.crt", "server.key"):
        if not (folder / name).is_file():
            raise InputError(f"--certificates: {folder} has no {name}: make them with `hellora certificates`")
        if name != "server.key":
            check_certificate(folder / name, "--certificates")
    if days_left(folder / "server.crt") < 0:
        raise InputError(f"--certificates: {folder / 'server.crt'} has ended: `hellora certificates {folder} --renew`")


def days_left(path: Path) -> int:
    """Return the days until a certificate ends; below 0 where it has."""
    end = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    return (end - datetime.datetime.now(datetime.UTC)).days


def public_key_text(path: Path) -> str:
    """Read a public key in OpenSSH format, without its comment. Raise InputError where the file is none."""
    try:
        text = path.read_text()
        forms.load_ssh_public_key(text.encode())
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no public key in OpenSSH format") from error
    return " ".join(text.split()[:2])


def key_as_shown(text: str) -> str:
    """Return a public key in OpenSSH format as a client's SuperNode shows it in each request."""
    key = forms.load_ssh_public_key(text.encode())
    return base64.b64encode(key.public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)).decode()


def exposed(*keys: Path) -> list[str]:
    """Return a warning for each private key that others on this machine can read."""
    modes = {key: key.stat().st_mode & 0o777 for key in keys if key.is_file()}
    return [
        f"WARNING: others can read the private key {key} (mode {mode:o}): chmod 600 {key}"
        for key, mode in modes.items()
        if mode & 0o077
    ]
