"""Every task between machines, over TLS: one running federation takes a run of each in turn, and each ends with the
bits that it has on one machine."""

from collections.abc import Iterator

import every_task
import pytest
from every_task import CASES, EveryTask
from federation_site import running, same_bits, tensors

OTHERS = sorted(CASES.keys() - {"chat", "classes"})  # "packed" is a chat, and test_deployed_runs are of classes
pytestmark = [pytest.mark.slow, pytest.mark.flower, pytest.mark.xdist_group("deployed tasks")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EveryTask]:
    with running(every_task.site_in(tmp_path_factory.mktemp("tasks"))) as begun:
        yield begun


@pytest.mark.parametrize("case", OTHERS)
def test_every_task_ends_with_the_same_bits(case: str, site: EveryTask) -> None:
    changes = every_task.changes(case, site.folder)
    run = site.submit(case, **changes)
    assert run.wait() == 0, run.log
    assert not any(line["missing"] or line["rejected"] for line in run.lines())
    assert same_bits(tensors(run.folder), site.replay(case, run.lost(), **changes))
