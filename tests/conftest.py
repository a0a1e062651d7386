"""What every test may ask for: tiny model folders, tiny data, the real data beside the checkout."""

import os
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the hub fails at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import pytest
import tiny_models
import torch

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

torch.set_num_threads(1)
for each in (signal.SIGINT, signal.SIGHUP):  # tests send these, also where a shell or nohup has them ignored
    if signal.getsignal(each) is signal.SIG_IGN:
        signal.signal(each, signal.default_int_handler if each is signal.SIGINT else signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without the folder its tests are left out, and the summary says so."""
    if not SHARED_DATA.is_dir():
        left_out = [item for item in items if item.get_closest_marker("shared_data")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if SHARED_DATA.is_dir():
        terminalreporter.write_line(f"tests on real data: run, on {SHARED_DATA}")
    else:
        terminalreporter.write_line(f"tests on real data: LEFT OUT, there is no folder {SHARED_DATA}", red=True)


@pytest.fixture(scope="session", autouse=True)
def own_data_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Arrow copies of the tests' small files do not belong into the user's cache."""
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_bert(tmp_path_factory.mktemp("bert"), hidden_dropout_prob=0.1)


@pytest.fixture(scope="session")
def tiny_bert_with_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_bert(tmp_path_factory.mktemp("bert-head"), own_head=True)


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny_bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_bart(tmp_path_factory.mktemp("bart"))


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_sentences(tmp_path_factory.mktemp("sentences"))
