"""Keys and certificates for a trial: what is in them, who can read them, and that nothing is overwritten."""

import ipaddress
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hellora.core.errors import InputError
from hellora.deployment import certificates
from hellora.deployment.renewal import renew, revoke

pytestmark = pytest.mark.flower


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    certificates.make(tmp_path / "keys", ["server.example", "10.0.0.7"], ["hospital", "clinic"])
    return tmp_path / "keys"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_server_is_known_by_its_hosts_and_to_itself(folder: Path) -> None:
    server = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["server.example", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == list(map(ipaddress.ip_address, ("10.0.0.7", "127.0.0.1")))
    server.verify_directly_issued_by(authority)
    authority.verify_directly_issued_by(authority)
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), None)
    assert key.public_key() == server.public_key()


def test_private_keys_are_for_their_owner_only(folder: Path) -> None:
    private = {folder / "ca.key", folder / "server.key", folder / "clients" / "hospital", folder / "clients" / "clinic"}
    assert {path for path in content(folder) if mode(path) == 0o600} == private


def test_each_client_has_a_pair_of_its_own(folder: Path) -> None:
    publics = []
    for name in ("hospital", "clinic"):
        private, public = certificates.key_paths(folder, name)
        key = serialization.load_ssh_private_key(private.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert isinstance(key.curve, ec.SECP384R1)
        assert serialization.load_ssh_public_key(public.read_bytes()) == key.public_key()
        assert public.read_text().endswith(f" {name}\n")
        publics.append(certificates.public_key_text(public))
        certificates.check_private_key(private, "--key")
    assert len(set(publics)) == 2


def test_python_trusts_the_server_by_each_of_its_names_and_no_other(folder: Path) -> None:
    """A whole handshake, in memory, as a strict client does it."""
    for name, good in [("server.example", True), ("127.0.0.1", True), ("10.0.0.7", True), ("10.0.0.8", False)]:
        assert handshake(folder / "ca.crt", folder, name) is good


def test_another_authority_is_not_trusted(folder: Path, tmp_path: Path) -> None:
    certificates.make(tmp_path / "other", [], [])
    assert not handshake(tmp_path / "other" / "ca.crt", folder, "localhost")


def handshake(authority: Path, folder: Path, name: str) -> bool:
    mine, theirs = ssl.create_default_context(cafile=authority), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    mine.verify_flags |= ssl.VERIFY_X509_STRICT
    theirs.load_cert_chain(folder / "server.crt", folder / "server.key")
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = mine.wrap_bio(a, b, server_hostname=name), theirs.wrap_bio(b, a, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return True


def test_clients_are_added_and_the_rest_stays_as_it_is(folder: Path) -> None:
    before = content(folder)
    made = certificates.make(folder, [], ["phone"])
    assert (made.new_authority, made.clients) == (False, ("phone",))
    after = content(folder)
    assert {path.name for path in after.keys() - before.keys()} == {"phone", "phone.pub"}
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize(
    ("hosts", "clients", "words"),
    [
        ([], ["phone", "clinic"], "has a key of clinic already"),
        (["other.example"], ["phone"], "has a server's certificate already"),
        ([], [], "holds a CA already: add clients"),
        ([], ["../evil"], "a name has letters"),
        ([], ["phone.pub"], "a name has letters"),
        ([], ["phone", "phone"], "given twice"),
    ],
)
def test_nothing_is_overwritten(folder: Path, hosts: list[str], clients: list[str], words: str) -> None:
    before = content(folder)
    with pytest.raises(InputError, match=words):
        certificates.make(folder, hosts, clients)
    assert content(folder) == before


def test_a_lost_public_key_is_not_made_anew(folder: Path) -> None:
    (folder / "clients" / "clinic.pub").unlink()
    with pytest.raises(InputError, match="has a key of clinic already"):
        certificates.make(folder, [], ["clinic"])


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    with pytest.raises(InputError, match="holds no CA of hellora"):
        certificates.make(tmp_path, [], ["clinic"])
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize("host", ["server.example:8443", "", "a b", "http://server"])
def test_a_host_that_is_none(tmp_path: Path, host: str) -> None:
    with pytest.raises(InputError, match="is no host name or IP address"):
        certificates.make(tmp_path / "keys", [host], [])
    assert not (tmp_path / "keys").exists()


def test_what_is_no_private_key(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="looks like the public one"):
        certificates.check_private_key(folder / "clients" / "clinic.pub", "--key")
    with pytest.raises(InputError, match="is no private key"):
        certificates.check_private_key(folder / "ca.crt", "--key")
    with pytest.raises(InputError, match="there is no file"):
        certificates.check_private_key(tmp_path / "absent", "--key")


def test_a_server_needs_all_its_files_and_a_certificate_that_has_not_ended(folder: Path, tmp_path: Path) -> None:
    certificates.check_server(folder)
    certificates.make(tmp_path / "old", [], [], days=0)
    with pytest.raises(InputError, match=r"server\.crt has ended: `hellora certificates .* --renew`"):
        certificates.check_server(tmp_path / "old")
    (folder / "server.key").unlink()
    with pytest.raises(InputError, match=r"has no server\.key"):
        certificates.check_server(folder)


def test_a_renewed_certificate_is_trusted_by_the_same_ca_and_the_former_keys_stay(folder: Path) -> None:
    before = content(folder)
    assert renew(folder, ["new.example"]) in (364, 365)
    after = content(folder)
    assert {path.name for path in before if after[path] != before[path]} == {"server.crt", "server.key"}
    assert after.keys() == before.keys()
    assert mode(folder / "server.key") == 0o600
    for name in ("server.example", "10.0.0.7", "127.0.0.1", "new.example"):
        assert handshake(folder / "ca.crt", folder, name)


def test_a_ca_outlives_many_renewals_and_what_it_signs_never_outlives_it(folder: Path) -> None:
    assert certificates.days_left(folder / "ca.crt") in (3649, 3650)
    certificates.make(folder.parent / "long", [], [], days=9999)
    assert certificates.days_left(folder.parent / "long" / "server.crt") <= 3650


@pytest.mark.parametrize("absent", ["ca.key", "ca.crt", "server.crt"])
def test_without_its_ca_nothing_is_renewed(folder: Path, absent: str) -> None:
    (folder / absent).unlink()
    with pytest.raises(InputError, match=f"has no {absent}"):
        renew(folder, [])


def test_a_revoked_key_lies_where_the_server_finds_it(folder: Path) -> None:
    public = (folder / "clients" / "clinic.pub").read_text()
    revoke(folder, ["clinic"])
    certificates.make(folder, [], ["clinic"])
    assert (folder / "revoked" / "0-clinic.pub").read_text() == public
    revoke(folder, ["clinic"])
    assert sorted(path.name for path in (folder / "revoked").iterdir()) == ["0-clinic.pub", "1-clinic.pub"]
    before = content(folder)
    with pytest.raises(InputError, match=r"--revoke nobody: .* has no clients/nobody\.pub"):
        revoke(folder, ["hospital", "nobody"])
    assert content(folder) == before


def test_a_private_key_that_others_can_read_is_warned_of(folder: Path) -> None:
    keys = folder / "server.key", folder / "ca.key", folder / "clients" / "hospital"
    assert certificates.exposed(*keys) == []
    for mode, readable in ((0o640, True), (0o604, True), (0o700, False), (0o400, False)):
        keys[0].chmod(mode)
        warning = f"WARNING: others can read the private key {keys[0]} (mode {mode:o}): chmod 600 {keys[0]}"
        assert certificates.exposed(*keys, folder / "absent.key") == [warning] * readable
