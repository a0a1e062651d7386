"""Runs of a real deployment over TLS: the same bits as in this process, also with a user's own strategies, and what
becomes of a run in which everything dies that can. Every row of the table of faults in docs/deploy.md is a test.

What counted is checked by replaying a run in this process without the answers that its record says are missing: the
same bits show that nothing else was lost, and nothing counted twice. Processes are dear to start, so one run suffers
all the faults, one after the other, and the tests read its record.
"""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from federation_site import (
    CLIENTS,
    METHODS,
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

pytestmark = [pytest.mark.slow, pytest.mark.flower, pytest.mark.xdist_group("deployment")]
CALM: dict[str, dict[str, Any]] = {
    "fed_hello": {"method": METHODS["fed_hello"]},
    "rules": {"method": {**OWN["two rules"]["method"], **OWN["Krum"]["method"]}, "train": SGD},
    "plans": {**OWN["FedAdam"], "cohort": 3, "method": {
        **OWN["an allocator that uses reports"]["method"], **OWN["a sampler"]["method"], **OWN["FedProx"]["method"],
    }},
}  # fmt: skip
FEDSA = {"allocator": "everything", "dispatcher": "truncate", "shares": "A", "head": "local"}
SECONDS = {**SGD, "epochs": 12}  # of training, to be killed in
EVENTFUL = {**OWN["SCAFFOLD"], "train": SECONDS, "wire": {"format": "bf16"}, "rounds": 7}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """All commands of the site run in a folder that holds the strategies' files."""
    site = site_in(tmp_path_factory.mktemp("deployment"))
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


def undisturbed(run: Run, **changes: Any) -> Run:
    """The run got every answer."""
    assert not any(line["missing"] or line["rejected"] for line in ended(run, **changes))
    return run


@pytest.fixture(scope="module")
def calm(site: Site) -> Run:
    return undisturbed(site.submit("fed_hello", **CALM["fed_hello"]), **CALM["fed_hello"])


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize("name", ["rules", "plans"])
def test_a_deployment_ends_with_the_same_bits(site: Site, name: str) -> None:
    loaded = {client: site.log(client).count(" trainer: loaded ") for client in CLIENTS}
    undisturbed(site.submit(name, **CALM[name]), **CALM[name])
    for client, before in loaded.items():
        assert site.log(client).count(" trainer: loaded ") == before + 1  # once, for all rounds


@pytest.fixture(scope="module")
def eventful(site: Site, calm: Run) -> Run:
    """The run in which everything dies. Its last round has lost an answer, too, so that what clients keep is not of one
    age."""
    changes = {**EVENTFUL, "deadline": calm.patience()}
    run = site.submit("eventful", **changes)
    let_in = lose_three_clients(site, run)
    for round, kill_it in ((2, kill_the_servers_app), (3, kill_the_superlink), (4, kill_the_server)):
        training(site, "hospital", round)
        kill_it(site)
        assert run.wait() == 1
        assert "--resume" in run.log
        let_in()
        run = site.submit("eventful", "--resume", **changes)
    for round, name in ((5, "hospital"), (6, "phone")):
        training(site, name, round)
        kill(below(site.processes[name], "hellora.deployment.trainer"))
    lines = ended(run, **changes)
    assert [line["round"] for line in lines] == [*range(7)]
    return run


def lose_three_clients(site: Site, run: Run) -> Callable[[], None]:
    """In round 0: a trainer stops until the round has ended, a SuperNode is killed, and a whole client, which is then
    started again. Return what waits until all are there again."""
    names = ("phone", "ward")
    training(site, "clinic", 0)
    (trainer,) = below(site.processes["clinic"], "hellora.deployment.trainer")
    trainer.send_signal(signal.SIGSTOP)
    connected = {name: site.log(name).count(f"{name}: connected") for name in names}
    kill(below(site.processes["ward"], "flower-supernode"))
    site.processes["phone"].kill()
    site.processes["phone"].wait()
    until(lambda: len(run.lines()) == 1, "round 0 to end without them")
    trainer.send_signal(signal.SIGCONT)
    site.start_client("phone")

    def let_in() -> None:
        for name in names:
            until(lambda n=name: site.log(n).count(f"{n}: connected") > connected[n], f"{name} to be let in again")

    return let_in


def kill_the_servers_app(site: Site) -> None:
    kill(below(site.processes["server"], "flwr-serverapp"))


def kill_the_superlink(site: Site) -> None:
    kill(below(site.processes["server"], "flower-superlink"))


def kill_the_server(site: Site) -> None:
    """And start it again when all of it has ended."""
    of_it = psutil.Process(site.processes["server"].pid).children(recursive=True)
    site.processes["server"].kill()
    site.processes["server"].wait()
    until(lambda: not any(is_alive(process) for process in of_it), "all of it to end")
    site.start_server()


def kill(processes: list[psutil.Process]) -> None:
    assert processes
    for process in processes:
        process.kill()


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_answer_that_comes_after_the_deadline_never_counts(eventful: Run) -> None:
    first, second, *_ = eventful.lines()
    assert first["missing"]["0"].startswith("no answer within ")
    assert second["dropped"]["0"] == ["late: it answered round 0"]
    assert "0" not in second["missing"]


def test_a_round_goes_on_without_a_supernode_and_a_client_that_were_killed(eventful: Run) -> None:
    """And has them again when they are back."""
    lines = eventful.lines()
    assert lines[0]["missing"].keys() == {"0", "2", "3"}
    assert lines[0]["updated"] == [1]
    assert {"2", "3"}.isdisjoint(lines[2]["missing"])


def test_rounds_in_which_the_server_died_are_run_again_with_everybody(eventful: Run) -> None:
    """Its app, the SuperLink, and the whole server: rounds 2, 3 and 4."""
    for line in eventful.lines()[2:5]:
        assert (line["missing"], line["updated"]) == ({}, [0, 1, 2, 3])


def test_a_trainer_killed_while_it_trains(eventful: Run) -> None:
    """Each is started again, and loads the model anew."""
    *_, fifth, last = eventful.lines()
    for line, client in ((fifth, "1"), (last, "2")):
        assert line["missing"].keys() == {client}
        assert "its trainer ended" in line["missing"][client]


def test_c_is_the_mean_of_what_clients_keep(site: Site, eventful: Run) -> None:
    """After all these faults, over a bf16 wire."""
    state = json.loads(max((eventful.folder / "checkpoint").glob("state-*.json")).read_text())
    versions = {int(client): int(version) for client, version in state["kept_versions"].items()}
    assert set(versions) == set(range(len(CLIENTS)))
    assert len(set(versions.values())) > 1
    own = [kept_by(site.folder, name, versions[client]) for client, name in enumerate(CLIENTS)]
    assert_mean_of_variates(part(tensors(eventful.folder), "strategies/local_training/variates"), own, len(CLIENTS))


def kept_by(folder: Path, client: str, version: int) -> dict[str, Any]:
    """What a client has kept of the one round that counted last for it."""
    (kept,) = kept_files(folder, client, version, "variates/head.weight")
    return part(load(unsealed_bytes(kept.read_bytes())), "variates")


def kept_files(folder: Path, client: str, version: int, has: str) -> list[Path]:
    """The files of a version that a client kept, of the runs that keep such a tensor."""
    found = (folder / "clients" / client / "kept").glob(f"*/{version:06d}.safetensors")
    return [file for file in found if has in load(unsealed_bytes(file.read_bytes()))]


@pytest.mark.usefixtures("calm")
def test_parts_of_their_own_never_leave_their_clients(site: Site) -> None:
    """FedSA-LoRA: each client keeps what it trained for itself, and exports its own model."""
    changes = {"method": FEDSA, "train": {"lr": 0.03, "batch_size": 8, "epochs": 10}}
    run = undisturbed(site.submit("fedsa", **changes), **changes)
    assert all(line["metrics"]["accuracy"] >= 0 for line in run.lines())
    simulated = tensors(site.folder / "fedsa-replay")
    state = json.loads(max((run.folder / "checkpoint").glob("state-*.json")).read_text())
    for client, name in enumerate(CLIENTS):
        (kept,) = kept_files(site.folder, name, state["kept_versions"][str(client)], "private/head.weight")
        assert same_bits(load(unsealed_bytes(kept.read_bytes())), part(simulated, f"kept/{client}"))
    for command in ("client export clients/ward ward-model", "predict ward-model ward.csv --json"):
        assert hellora(*command.split(), folder=site.folder, log=site.folder / "ward-said.log").wait() == 0
    assert '"label"' in site.log("ward-said")
