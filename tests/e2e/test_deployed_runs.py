"""Runs of a real deployment: the same bits as in this process, and what becomes of them when a process is killed.
Every row of the table of faults in docs/deploy.md is a test.

What counted is checked by replaying a run in this process without the answers that its record says are missing: the
same bits show that nothing else was lost, and nothing counted twice.
"""

import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from federation_site import CLIENTS, METHODS, Run, Site, below, running, same_bits, site_in, tensors, training, until

pytestmark = [pytest.mark.slow, pytest.mark.flower, pytest.mark.xdist_group("deployment")]
LONG = {"train": {"lr": 0.03, "batch_size": 8, "epochs": 20}}  # seconds of training, to be killed in


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(site_in(tmp_path_factory.mktemp("federation"))) as site:
        yield site


@pytest.fixture(scope="module")
def first(site: Site) -> Run:
    """A run that nobody disturbed."""
    run = site.submit("fed_hello", method=METHODS["fed_hello"])
    undisturbed(run, method=METHODS["fed_hello"])
    return run


@pytest.fixture(scope="module")
def deadline(first: Run) -> dict[str, Any]:
    return {"deadline": first.patience(), **LONG}


def kill(processes: list[psutil.Process]) -> None:
    assert processes
    for process in processes:
        process.kill()


def finished(run: Run, **changes: Any) -> list[dict[str, Any]]:
    """The lines of a run that ended well, whose result is that of the answers that it says it got."""
    assert run.wait() == 0, run.log
    lines = run.lines()
    assert [line["round"] for line in lines] == [0, 1]
    assert same_bits(tensors(run.folder), run.site.replay(run.out, run.lost(), **changes))
    return lines


def undisturbed(run: Run, **changes: Any) -> None:
    """The run got every answer."""
    assert not any(line["missing"] or line["rejected"] for line in finished(run, **changes))


@pytest.mark.usefixtures("first")
def test_a_deployment_ends_with_the_same_bits(site: Site) -> None:
    """And more methods in test_own_deployed."""
    before = {name: site.log(name).count(" trainer: loaded ") for name in CLIENTS}
    undisturbed(site.submit("product_update", method=METHODS["product_update"]), method=METHODS["product_update"])
    for name in CLIENTS:
        assert site.log(name).count(" trainer: loaded ") == before[name] + 1  # once, for all rounds


def test_a_trainer_killed_while_it_trains(site: Site) -> None:
    run = site.submit("trainer", **LONG)
    training(site, "hospital", 0)
    kill(below(site.processes["hospital"], "hellora.deployment.trainer"))
    lines = finished(run, **LONG)
    assert "its trainer ended" in lines[0]["missing"]["1"]
    assert not lines[1]["missing"]  # it was started again, and loaded the model anew


def test_an_answer_that_comes_after_the_deadline_never_counts(site: Site, deadline: dict[str, Any]) -> None:
    run = site.submit("late", **deadline)
    training(site, "clinic", 0)
    (trainer,) = below(site.processes["clinic"], "hellora.deployment.trainer")
    trainer.send_signal(signal.SIGSTOP)
    until(lambda: len(run.lines()) == 1, "the round to end without it")
    trainer.send_signal(signal.SIGCONT)
    lines = finished(run, **deadline)
    assert lines[0]["missing"] == {"0": f"no answer within {deadline['deadline']:g} s"}
    assert lines[1]["dropped"]["0"] == ["late: it answered round 0"]


def test_a_supernode_killed_while_its_client_trains(site: Site, deadline: dict[str, Any]) -> None:
    run = site.submit("supernode", **deadline)
    training(site, "clinic", 0)
    connected = site.log("clinic").count("clinic: connected")
    kill(below(site.processes["clinic"], "flower-supernode"))
    lines = finished(run, **deadline)
    assert lines[0]["missing"].keys() == {"0"}
    until(lambda: site.log("clinic").count("clinic: connected") > connected, "clinic to be let in again", 180)
    undisturbed(site.submit("rejoined", **LONG), **LONG)


def test_a_client_killed_with_all_its_processes_and_back_later(site: Site, deadline: dict[str, Any]) -> None:
    run = site.submit("client", **deadline)
    training(site, "phone", 0)
    site.processes["phone"].kill()
    site.processes["phone"].wait()
    lines = finished(run, **deadline)
    assert lines[0]["missing"].keys() == {"2"}
    connected = site.log("phone").count("phone: connected")
    site.start_client("phone")
    until(lambda: site.log("phone").count("phone: connected") > connected, "phone to be let in again", 180)
    undisturbed(site.submit("back", **LONG), **LONG)


def test_the_servers_app_killed_in_a_round(site: Site) -> None:
    run = site.submit("app", **LONG)
    training(site, "clinic", 1)
    kill(below(site.processes["server"], "flwr-serverapp"))
    assert run.wait() == 1
    assert "--resume" in run.log
    undisturbed(site.submit("app", "--resume", **LONG), **LONG)


def test_the_superlink_killed_in_a_round(site: Site) -> None:
    run = site.submit("superlink", **LONG)
    training(site, "clinic", 1)
    kill(below(site.processes["server"], "flower-superlink"))
    assert run.wait() == 1
    undisturbed(site.submit("superlink", "--resume", **LONG), **LONG)


def test_the_server_killed_and_started_again(site: Site) -> None:
    run = site.submit("host", **LONG)
    training(site, "clinic", 1)
    below_it = psutil.Process(site.processes["server"].pid).children(recursive=True)
    site.processes["server"].kill()
    site.processes["server"].wait()
    until(lambda: not any(is_alive(process) for process in below_it), "all of it to end")
    site.start_server()
    assert run.wait() == 1
    undisturbed(site.submit("host", "--resume", **LONG), **LONG)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
