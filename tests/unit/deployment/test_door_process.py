"""The process of a server's door: TLS, a renewed certificate, refused keys, and the health address."""

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from doors import at_a_door

from hellora.deployment import certificates, door_process
from hellora.deployment.door_process import DoorSettings
from hellora.deployment.renewal import renew

pytestmark = pytest.mark.flower


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_process, "LOOK_SECONDS", 0.02)


async def asked(settings: DoorSettings, path: str, key: str = "") -> httpx.Response:
    trust = ssl.create_default_context(cafile=Path(settings.certificates or "") / "ca.crt")
    async with httpx.AsyncClient(verify=trust, trust_env=False) as client:
        return await client.post(f"https://127.0.0.1:{settings.port}{path}", headers={"flwr-public-key": key})


async def health(settings: DoorSettings) -> tuple[int, dict[str, Any]]:
    async with httpx.AsyncClient(trust_env=False) as client:
        reply = await client.get(f"http://127.0.0.1:{settings.health_port}/")
        return reply.status_code, reply.json()


def test_clients_get_in_over_tls_and_the_operator_sees_that_all_is_well(tmp_path: Path) -> None:
    async def visit(settings: DoorSettings) -> tuple[Any, ...]:
        inside = await asked(settings, "/v1/fleet/pull-messages")
        return inside.text, (await asked(settings, "/health")).status_code, await health(settings)

    words, other, (status, found) = at_a_door(tmp_path, visit)
    assert words == "POST /v1/fleet/pull-messages HTTP/1.1"
    assert other == 404, "the health address is not for those outside"
    assert status == 200
    assert found["superlink"] is True
    assert found["certificate_days"] in (364, 365)
    assert found["disk_free_bytes"] > 0


def test_a_superlink_that_is_away_is_no_health(tmp_path: Path) -> None:
    status, found = at_a_door(tmp_path, health, superlink=False)
    assert (status, found["superlink"]) == (503, False)


def test_a_renewed_certificate_and_a_refused_key_are_taken_up_meanwhile(tmp_path: Path) -> None:
    keys = tmp_path / "keys"

    async def visit(settings: DoorSettings) -> None:
        def shown() -> str:
            return ssl.get_server_certificate(("127.0.0.1", settings.port))

        before = await asyncio.to_thread(shown)
        assert renew(keys, []) > 0
        key = certificates.key_as_shown(certificates.public_key_text(keys / "clients" / "ward.pub"))
        (tmp_path / "refused.json").write_text(json.dumps({key: "ward's key was revoked"}))
        async with asyncio.timeout(20):
            while await asyncio.to_thread(shown) == before:
                await asyncio.sleep(0.02)
            while (reply := await asked(settings, "/v1/fleet/activate-node", key)).status_code == 200:
                await asyncio.sleep(0.02)
        assert reply.status_code == 410
        assert (await asked(settings, "/v1/fleet/activate-node", "another")).status_code == 200

    at_a_door(tmp_path, visit)


def test_half_of_a_renewed_pair_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def visit(settings: DoorSettings) -> None:
        certificates.make(tmp_path / "other", [], [])
        (tmp_path / "keys" / "server.key").write_bytes((tmp_path / "other" / "server.key").read_bytes())
        async with asyncio.timeout(20):
            while "the former is shown" not in caplog.text:
                await asyncio.sleep(0.02)
        assert (await asked(settings, "/v1/fleet/pull-messages")).status_code == 200

    at_a_door(tmp_path, visit)
