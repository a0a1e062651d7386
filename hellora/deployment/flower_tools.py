"""Flower's own programs are called here: where they are, what they are told, and what their answers mean."""

import contextlib
import json
import os
import re
import secrets
import socket
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from hellora.core.errors import InputError, RunError, one_line

CONNECTION = "hellora"  # the name of the server in Flower's configuration files
BIN = Path(sys.executable).parent
PORTS = range(20_000, 32_000)
PROBE_SECONDS = 10.0
COMMAND_SECONDS = 120.0


def program(name: str) -> str:
    """Find a program of Flower: it lies beside the Python that runs this."""
    path = BIN / name
    if not path.exists():
        raise InputError(f"there is no {path}: Flower is not installed here; pip install 'hellora[flower]'")
    return str(path)


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of every process of Flower. `home` is its own folder, instead of ~/.flwr.

    No telemetry, no look for updates, nothing is installed at run time, and what is sent to this machine does not go
    through a proxy. Modules are not looked for in the working directory.
    """
    before = os.environ
    local = "localhost,127.0.0.1,::1"
    return {
        **before,
        # Flower starts its other programs by name, and an unactivated environment is not on the path.
        "PATH": os.pathsep.join([str(BIN), before.get("PATH", os.defpath)]),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",  # a log is followed line by line
        "FLWR_HOME": str(home.resolve()),  # what it keeps in ~/.flwr is shared: a second server would read the first's
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else a submitted bundle could have packages installed
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",  # seconds; by default a message waits for up to 1 s on either side
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns
        # gRPC and requests go through a proxy even to this machine; either spelling is read by one of them.
        "NO_PROXY": ",".join(filter(None, [before.get("NO_PROXY"), local])),
        "no_proxy": ",".join(filter(None, [before.get("no_proxy"), local])),
        **more,
    }


@dataclass(frozen=True)
class Address:
    """An address is a server's host and port, and the CA that has signed its certificate; None is plain text."""

    host: str
    port: int
    certificate: Path | None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, where: str, certificate: Path | None, insecure: bool) -> "Address":
        """Read "HOST:PORT". Raise InputError where it is none, or where nothing says how to be sure of the server."""
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", text)
        if not found or not 1 <= int(found[2]) <= 65535:
            raise InputError(f"{where} {text!r}: write it as HOST:PORT, such as server.example:8443")
        if (certificate is None) != insecure:
            raise InputError(
                "--insecure and --certificate exclude each other: give one"
                if insecure
                else f"{where} needs --certificate, the server's ca.crt (or --insecure, for plain text without keys)"
            )
        if certificate is not None:
            from hellora.deployment.certificates import check_certificate

            check_certificate(certificate, "--certificate")
        return cls(found[1].strip("[]"), int(found[2]), certificate and certificate.resolve())

    def reached(self) -> bool:
        """Tell whether a server answers; False where none does (yet).

        Raises:
            InputError: what answers cannot be trusted, or does not speak as it should; that will not change by itself.
        """
        # Without Flower, whose programs say of most of these no more than that they cannot connect, and try again.
        try:
            with socket.create_connection((self.host, self.port), PROBE_SECONDS) as plain:
                if self.certificate is None:
                    return self.speaks_plain_text(plain)
                with ssl.create_default_context(cafile=self.certificate).wrap_socket(plain, server_hostname=self.host):
                    return True
        except ssl.SSLCertVerificationError as error:
            raise InputError(self.distrust(error.verify_message)) from error
        except ssl.SSLError as error:
            raise InputError(f"{self} does not speak TLS: is it a `hellora server` with --insecure?") from error
        except OSError:
            return False

    def speaks_plain_text(self, plain: socket.socket) -> bool:
        """Ask for a page: whatever it is, what speaks HTTP without TLS answers in HTTP. Raise InputError if not."""
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        if not plain.recv(16).startswith(b"HTTP/"):
            raise InputError(f"{self} does not speak plain text: leave out --insecure, and give --certificate")
        return True

    def distrust(self, why: str) -> str:
        """Say what is wrong with the server's certificate, and what to do."""
        return (
            f"--certificate {self.certificate}: {self} shows a certificate that it does not vouch for ({why}): take "
            f"the ca.crt of that server, and reach it by a name that its certificate has"
        )


@dataclass(frozen=True)
class Flower:
    """Calls Flower's command line, for one server."""

    home: Path

    @classmethod
    def at(cls, address: Address, home: Path) -> "Flower":
        """Write the configuration, from which Flower's commands know servers and certificates, into `home`."""
        trust: dict[str, Any] = (
            {"insecure": True} if address.certificate is None else {"root-certificates": str(address.certificate)}
        )
        home.mkdir(parents=True, exist_ok=True)
        table = {"superlink": {"default": CONNECTION, CONNECTION: {"address": str(address), **trust}}}
        (home / "config.toml").write_text(tomli_w.dumps(table))
        return cls(home)

    def command(self, *arguments: str) -> list[str]:
        """Put the program before its arguments."""
        return [program("flwr"), *arguments]

    def call(self, *arguments: str) -> dict[str, Any]:
        """Run a command that can answer in JSON, and return its answer.

        Raises:
            RunError: it failed; the message has its own words.
        """
        try:
            done = subprocess.run(
                self.command(*arguments, "--format", "json"),
                env=environment(self.home),
                stdin=subprocess.DEVNULL,  # it might ask
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                start_new_session=True,  # Ctrl-C is for us; a command that has begun is answered
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(f"the server did not answer within {COMMAND_SECONDS:.0f} s") from error
        answer = last_json(done.stdout)
        if not answer.get("success"):
            raise RunError(one_line(str(answer.get("error-message") or done.stderr or done.stdout)))
        return answer


def last_json(text: str) -> dict[str, Any]:
    """Find the JSON object that ends a text; {} where there is none. Commands print notes for people before it."""
    for match in re.finditer(r"^\{", text, re.MULTILINE):
        with contextlib.suppress(ValueError):
            found: dict[str, Any] = json.loads(text[match.start() :])
            return found
    return {}


def reason(output: str) -> str:
    """Find why a program of Flower ended, in its own words: what follows its exit code. "" where it does not say.

    The status of the process is no help: it is 1 for every reason.
    """
    found = re.search(r"Exit Code: (\d+)\n(.*?)(\n\n|\Z)", output, re.DOTALL)
    return f"{one_line(found[2])} (Flower's exit code {found[1]})" if found else ""


def free_port() -> int:
    """Find a port on this machine that nobody uses now, and that systems do not hand out by themselves.

    Flower's programs listen for their own children, on a fixed port unless they are told another: two clients on one
    machine would be in each other's way. They refuse port 0.
    """
    while True:
        port = secrets.choice(PORTS)
        with contextlib.suppress(InputError):
            check_free("127.0.0.1", port)
            return port


def check_free(host: str, port: int) -> None:
    """Raise InputError where one cannot listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended is no hindrance
            probe.bind((host, port))
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another --host or --port"
        ) from error


def arguments_of(settings: dict[str, str | int | float | bool]) -> str:
    """Write settings as Flower reads them on a command line."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
