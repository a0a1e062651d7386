"""What becomes of a deployed run when a process of it is killed. Every row of the table in docs/deploy.md is a test.

What counted is checked by replaying the run in this process without the answers that its record says are missing: the
same bits show that nothing else was lost, and nothing counted twice.
"""

import csv
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from federation_site import Run, Site, below, running, same_bits, tensors, until
from tiny_models import save_bert, save_sentences

pytestmark = [pytest.mark.slow, pytest.mark.flower]
LONG = {"train": {"lr": 0.03, "batch_size": 8, "epochs": 40}}  # a few seconds of training, to be killed in


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("federation")
    data = save_sentences(folder / "sentences", train=240)
    with (data / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    with running(Site(folder, save_bert(folder / "bert"), rows, (data / "test.csv").read_bytes())) as site:
        yield site


def training(site: Site, name: str, round: int) -> None:
    """Wait until a client trains in a round of the run that was submitted last."""
    seen = site.log(name).count(f"round {round}: training")
    until(lambda: site.log(name).count(f"round {round}: training") > seen, f"{name} to train in round {round}")


def kill(processes: list[psutil.Process]) -> None:
    assert processes
    for process in processes:
        process.kill()


def finished(run: Run, **changes: Any) -> list[dict[str, Any]]:
    """The lines of a run that ended well, whose result is that of the answers that it says it got."""
    assert run.wait() == 0, run.log
    lines = run.lines()
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert same_bits(tensors(run.folder), run.site.replay(run.out, run.lost(), **changes))
    return lines


def test_undisturbed(site: Site) -> None:
    lines = finished(site.submit("undisturbed"))
    assert not any(line["missing"] or line["rejected"] for line in lines)
    for name in ("clinic", "hospital", "phone"):
        assert site.log(name).count(" trainer: loaded ") == 1  # once for all rounds
    again = site.submit("again")
    assert again.wait() == 0, again.log
    assert same_bits(tensors(again.folder), tensors(site.folder / "runs" / "undisturbed"))


def test_a_trainer_killed_while_it_trains(site: Site) -> None:
    run = site.submit("trainer", **LONG)
    training(site, "hospital", 1)
    kill(below(site.processes["hospital"], "hellora.trainer"))
    lines = finished(run, **LONG)
    assert "its trainer ended" in lines[1]["missing"]["1"]
    assert lines[0]["missing"] == lines[2]["missing"] == {}  # it was started again, and loaded the model anew


def test_a_client_killed_with_all_its_processes_and_back_later(site: Site) -> None:
    run = site.submit("client", deadline=20.0, **LONG)
    training(site, "phone", 0)
    site.processes["phone"].kill()
    until(
        lambda: not psutil.pid_exists(site.processes["phone"].pid) or site.processes["phone"].poll() is not None,
        "it to end",
    )
    lines = finished(run, deadline=20.0, **LONG)
    assert lines[0]["missing"].keys() == {"2"}
    site.start_client("phone")
    until(lambda: "phone: connected" in site.log("phone").rpartition("phone: server")[2], "phone to be back", 180)
    back = site.submit("back", **LONG)
    assert not any(line["missing"] for line in finished(back, **LONG))


def test_a_supernode_killed_while_its_client_trains(site: Site) -> None:
    run = site.submit("supernode", deadline=20.0, **LONG)
    training(site, "clinic", 0)
    kill(below(site.processes["clinic"], "flower-supernode"))
    lines = finished(run, deadline=20.0, **LONG)
    assert lines[0]["missing"].keys() == {"0"}
    said = "clinic: connected"
    until(lambda: site.log("clinic").count(said) > 1, "clinic to be let in again", 180)
    loaded = site.log("clinic").count(" trainer: loaded ")
    assert not any(line["missing"] for line in finished(site.submit("rejoined", **LONG), **LONG))
    assert site.log("clinic").count(" trainer: loaded ") == loaded + 1  # another run, whose model is loaded once


def test_an_answer_that_comes_after_the_deadline_never_counts(site: Site) -> None:
    run = site.submit("late", deadline=15.0, **LONG)
    training(site, "clinic", 0)
    (trainer,) = below(site.processes["clinic"], "hellora.trainer")
    trainer.send_signal(signal.SIGSTOP)
    until(lambda: len(run.lines()) == 1, "the round to end without it")
    trainer.send_signal(signal.SIGCONT)
    lines = finished(run, deadline=15.0, **LONG)
    assert lines[0]["missing"] == {"0": "no answer within 15 s"}


def test_the_servers_app_killed_in_a_round(site: Site) -> None:
    run = site.submit("app", **LONG)
    training(site, "clinic", 1)
    kill(below(site.processes["server"], "flwr-serverapp"))
    assert run.wait() == 1
    assert "--resume" in run.log
    resumed = site.submit("app", "--resume", **LONG)
    lines = finished(resumed, **LONG)
    assert not any(line["missing"] for line in lines)


def test_the_superlink_killed_in_a_round(site: Site) -> None:
    run = site.submit("superlink", **LONG)
    training(site, "clinic", 1)
    before = time.monotonic()
    kill(below(site.processes["server"], "flower-superlink"))
    assert run.wait() == 1
    assert time.monotonic() - before < 120
    resumed = site.submit("superlink", "--resume", **LONG)
    lines = finished(resumed, **LONG)
    assert not any(line["missing"] for line in lines)


def test_the_server_killed_and_started_again(site: Site) -> None:
    run = site.submit("server", **LONG)
    training(site, "clinic", 1)
    mine = psutil.Process(site.processes["server"].pid).children(recursive=True)
    site.processes["server"].kill()
    until(
        lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in mine),
        "all of it to end",
    )
    site.start_server()
    assert run.wait() == 1
    resumed = site.submit("server", "--resume", **LONG)
    lines = finished(resumed, **LONG)
    assert not any(line["missing"] for line in lines)
