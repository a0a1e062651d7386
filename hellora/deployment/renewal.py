"""Change a folder of certificates that is in use: renew the server's certificate, and revoke clients' keys.

A server takes up both within seconds, without a restart. The CA stays the same, so that no client needs a new file.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec

from hellora.core.errors import InputError
from hellora.deployment.certificates import days_left, general_name, key_paths, private_bytes, signed
from hellora.record.atomic import write_atomically


def renew(folder: Path, hosts: Sequence[str]) -> int:
    """Make a new key and certificate of the server, for the same names and those in `hosts`; return its days.

    Raises:
        InputError: the folder holds no CA with its key, or the CA has ended.
    """
    for name in ("ca.crt", "ca.key", "server.crt"):
        if not (folder / name).is_file():
            raise InputError(
                f"--renew: {folder} has no {name}, so that nothing can be signed: name the folder of the CA"
            )
    ca = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    if days_left(folder / "ca.crt") < 1:
        raise InputError(f"--renew: {folder / 'ca.crt'} has ended: make a new folder, and give every client its ca.crt")
    authority = forms.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(authority, ec.EllipticCurvePrivateKey)
    before = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    known = before.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    names = x509.SubjectAlternativeName(list(dict.fromkeys((*known, *map(general_name, hosts)))))
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = signed(before.subject, ca, authority, key.public_key(), names)
    replace_file(folder / "server.key", private_bytes(key, forms.PrivateFormat.PKCS8), 0o600)
    replace_file(folder / "server.crt", certificate.public_bytes(forms.Encoding.PEM), 0o644)
    return days_left(folder / "server.crt")


def replace_file(path: Path, content: bytes, mode: int) -> None:
    """Put a file in the place of another at once; it never has wider permissions than `mode`."""
    before = os.umask(0o777 & ~mode)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}") from error
    finally:
        os.umask(before)


def revoke(folder: Path, clients: Sequence[str]) -> None:
    """Move clients' keys to `revoked`, where the server finds whom to shut out. A private key that lies here goes.

    Raises:
        InputError: a client has no key here; then nothing has changed.
    """
    for name in clients:
        if not key_paths(folder, name)[1].is_file():
            raise InputError(f"--revoke {name}: {folder} has no clients/{name}.pub: name a client that it admits")
    for name in clients:
        private, public = key_paths(folder, name)
        (folder / "revoked").mkdir(exist_ok=True)
        public.rename(folder / "revoked" / f"{len(list((folder / 'revoked').iterdir()))}-{name}.pub")
        private.unlink(missing_ok=True)
