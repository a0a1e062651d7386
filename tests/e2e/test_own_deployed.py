"""A user's own strategies in a real deployment over TLS: the same bits as in this process, and what clients keep for
themselves follows what counted, whatever happens on the way."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from federation_site import (
    CLIENTS,
    Run,
    Site,
    below,
    hellora,
    running,
    same_bits,
    site_in,
    tensors,
    training,
    until,
)  # fmt: skip
from own import OWN, SGD, allowing, assert_mean_of_variates, part, scratch, working_in
from safetensors.torch import load

from hellora.record.sealed import unsealed_bytes

pytestmark = [pytest.mark.slow, pytest.mark.flower, pytest.mark.xdist_group("own deployment")]
FEDSA = {"allocator": "everything", "dispatcher": "truncate", "shares": "A", "head": "local"}
VARIATES = {**OWN["SCAFFOLD"], "train": {**SGD, "epochs": 20}, "wire": {"format": "bf16"}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """All commands of the site run in a folder that holds the strategies' files."""
    site = site_in(tmp_path_factory.mktemp("own"))
    site.allow = allowing(OWN)
    with working_in(scratch(site.folder)), running(site) as begun:
        yield begun


def shared(found: dict[str, Any]) -> dict[str, Any]:
    """What of a checkpoint is there in a deployment, too: not what clients keep."""
    return {name: tensor for name, tensor in found.items() if not name.startswith("kept/")}


def ended(run: Run, **changes: Any) -> list[dict[str, Any]]:
    """The lines of a run whose result is, bit for bit, that of the answers that it says it got."""
    assert run.wait() == 0, run.log
    assert same_bits(tensors(run.folder), shared(run.site.replay(run.out, run.lost(), **changes)))
    return run.lines()


MIXED = {
    "rules": {"method": {**OWN["two rules"]["method"], **OWN["Krum"]["method"]}, "train": SGD},
    "plans": {**OWN["FedAdam"], "cohort": 3, "method": {
        **OWN["an allocator that uses reports"]["method"], **OWN["a sampler"]["method"], **OWN["FedProx"]["method"],
    }},
}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> dict[str, Run]:
    """A run of each, in which every answer counted."""
    runs = {}
    for name, own in MIXED.items():
        changes = {"rounds": 2, **own}
        runs[name] = site.submit(name, **changes)
        lines = ended(runs[name], **changes)
        assert not any(line["missing"] or line["rejected"] for line in lines)
    return runs


def test_own_strategies_end_with_the_same_bits(undisturbed: dict[str, Run]) -> None:
    assert undisturbed.keys() == MIXED.keys()


def test_c_is_the_mean_of_what_clients_keep(site: Site, undisturbed: dict[str, Run]) -> None:
    """Over a bf16 wire; one answer comes too late, one trainer is killed, and the run is interrupted and resumed."""
    changes = {"rounds": 3, "deadline": undisturbed["rules"].patience(), **VARIATES}
    run = site.submit("variates", **changes)
    training(site, "clinic", 0)
    (trainer,) = below(site.processes["clinic"], "hellora.deployment.trainer")
    trainer.send_signal(signal.SIGSTOP)
    until(lambda: len(run.lines()) == 1, "round 0 to end without the clinic")
    trainer.send_signal(signal.SIGCONT)
    training(site, "hospital", 1)
    for process in below(site.processes["hospital"], "hellora.deployment.trainer"):
        process.kill()
    until(lambda: len(run.lines()) >= 2, "round 1 to end")
    run.process.send_signal(signal.SIGINT)
    run.wait()
    lines = ended(site.submit("variates", "--resume", **changes), **changes)
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert "0" in lines[0]["missing"]
    assert "1" in lines[1]["missing"]
    state = json.loads(max((run.folder / "checkpoint").glob("state-*.json")).read_text())
    versions = {int(client): int(version) for client, version in state["kept_versions"].items()}
    assert set(versions) == set(range(len(CLIENTS)))
    own = [kept_by(site.folder, name, versions[client]) for client, name in enumerate(CLIENTS)]
    assert_mean_of_variates(part(tensors(run.folder), "strategies/local_training/variates"), own, len(CLIENTS))


def kept_by(folder: Path, client: str, version: int) -> dict[str, Any]:
    """What a client has kept of the one round that counted last for it."""
    (kept,) = kept_files(folder, client, version, "variates/head.weight")
    return part(load(unsealed_bytes(kept.read_bytes())), "variates")


def test_parts_of_their_own_never_leave_their_clients(site: Site) -> None:
    """FedSA-LoRA: one trainer is killed, the run is interrupted and resumed, and each client exports its model."""
    changes = {"rounds": 3, "method": FEDSA, "train": {"lr": 0.03, "batch_size": 8, "epochs": 10}}
    run = site.submit("fedsa", **changes)
    training(site, "clinic", 1)
    for process in below(site.processes["clinic"], "hellora.deployment.trainer"):
        process.kill()
    until(lambda: len(run.lines()) >= 2, "round 1 to end")
    run.process.send_signal(signal.SIGINT)
    run.wait()
    lines = ended(site.submit("fedsa", "--resume", **changes), **changes)
    assert "0" in lines[1]["missing"]
    assert all(line["metrics"]["accuracy"] >= 0 for line in lines)
    simulated = tensors(site.folder / "fedsa-replay")
    state = json.loads(max((run.folder / "checkpoint").glob("state-*.json")).read_text())
    for client, name in enumerate(CLIENTS):
        (kept,) = kept_files(site.folder, name, state["kept_versions"][str(client)], "private/head.weight")
        assert same_bits(load(unsealed_bytes(kept.read_bytes())), part(simulated, f"kept/{client}"))
        command = ("client", "export", f"clients/{name}", f"{name}-model")
        assert hellora(*command, folder=site.folder, log=site.folder / "export.log").wait() == 0
        command = ("predict", f"{name}-model", f"{name}.csv")
        assert hellora(*command, folder=site.folder, log=site.folder / f"{name}-said.log").wait() == 0
        assert '"label"' in site.log(f"{name}-said")


def kept_files(folder: Path, client: str, version: int, has: str) -> list[Path]:
    """The files of a version that a client kept, of the runs that keep such a tensor."""
    found = (folder / "clients" / client / "kept").glob(f"*/{version:06d}.safetensors")
    return [file for file in found if has in load(unsealed_bytes(file.read_bytes()))]
