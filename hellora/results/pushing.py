"""Put an adapter or a whole model on the Hub, with its card: `hellora push`.

The token is that of `hf auth login`, or HF_TOKEN; it is neither asked for nor shown. What is published has no path of
this machine, and no client's own adapter.
"""

import json
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils._validators import validate_repo_id

from hellora.core.errors import HelloraError, InputError, RunError, one_line
from hellora.model.location import EMBEDDED
from hellora.record.run_folder import RunFolder
from hellora.results.adapter_folder import USAGE_FILE
from hellora.results.exporting import export_run

PERSONAL = "personal"  # below an adapter: those of each client
FOLDER = re.compile(r"^(adapter|model_folder) = .*$", re.MULTILINE)  # in a card's code
BASE = re.compile(r"^base = .*$", re.MULTILINE)
FETCHED = "from huggingface_hub import snapshot_download\n\n{} = snapshot_download({!r})"


def push(source: Path, repo: str, private: bool = False, merged: bool = False, allow: Collection[str] = ()) -> str:
    """Put what is in `source`, an exported adapter or a run, into the repository `repo`; return its address.

    private  make the repository so that others cannot see it; one that is there and public is refused
    merged   of a run, the whole model with the adapter in its weights

    Raises:
        InputError: there is no token, no such folder, or the Hub refuses the name or the token.
        RunError: the Hub cannot be reached, or fails.
    """
    if get_token() is None:
        raise InputError("push: there is no token for the Hub: `hf auth login` once, or HF_TOKEN in the environment")
    check_source(source, merged)
    api = HfApi(library_name="hellora")
    with telling(repo):
        validate_repo_id(repo)
        api.whoami()  # before long work
    with TemporaryDirectory() as place:
        folder = Path(place) / "out"
        exported(source, folder, merged, allow)
        upload(api, folder, repo, private)
    return f"{api.endpoint}/{repo}"


def upload(api: HfApi, folder: Path, repo: str, private: bool) -> None:
    """Put the files of a folder into a repository, which is made where there is none."""
    with telling(repo):
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(address.repo_id).private:
            raise InputError(f"--private: {repo} is there already, and public: name another, or change it on the Hub")
        make_public(folder, address.repo_id)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Trained with hellora")


@contextmanager
def telling(repo: str) -> Iterator[None]:
    """Turn what the Hub, or the way to it, raises into one line."""
    try:
        yield
    except HelloraError:
        raise
    except OfflineModeIsEnabled as error:
        raise InputError("push: HF_HUB_OFFLINE keeps this machine from the Hub: unset it") from error
    except HFValidationError as error:
        raise InputError(f"push: {repo!r} is no name of a repository: write it as NAME or OWNER/NAME") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise InputError(
                f"push: the Hub refuses the token for {repo} ({status}): `hf auth login` with one that may write there"
            ) from error
        raise RunError(f"push: the Hub answers {status}: {one_line(error.server_message or error)[:200]}") from error
    except Exception as error:  # huggingface_hub has had two network libraries, and has a third for large files
        why = one_line(error.__cause__ or error)[:200]
        raise RunError(f"push: the Hub cannot be reached, or gives no sense: {why}") from error


def check_source(source: Path, merged: bool) -> None:
    """Raise InputError where there is nothing of the kind to be put on the Hub."""
    usage = source / USAGE_FILE
    if not usage.is_file() and not RunFolder(source).experiment.is_file():
        raise InputError(f"{source} is neither a run nor what `hellora export` wrote: name one of these")
    if merged and usage.is_file() and not json.loads(usage.read_bytes()).get("merged"):
        raise InputError(f"--merged: {source} is an adapter: name its run, or what `hellora export --merged` wrote")


def exported(source: Path, folder: Path, merged: bool, allow: Collection[str]) -> None:
    """Copy an exported adapter to `folder`, or export a run there; of neither the clients' own adapters."""
    if (source / USAGE_FILE).is_file():
        shutil.copytree(source, folder)
    else:
        export_run(source, folder, merged, allow=allow)
    shutil.rmtree(folder / PERSONAL, ignore_errors=True)


def make_public(folder: Path, repo: str) -> None:
    """Let cards say where the Hub has adapter and base, and take the base's path on this machine out of all files."""
    for usage in sorted(folder.rglob(USAGE_FILE)):
        below = usage.parent.relative_to(folder).as_posix()
        origin = json.loads(usage.read_bytes()).get("base") or {}
        name, path = origin.get("name", ""), origin.get("path")
        base = EMBEDDED.get(name) or (Path(path).name if path else name)
        for file in (usage, usage.with_name("adapter_config.json"), usage.with_name("README.md")):
            if not file.is_file():
                continue
            text = file.read_text()
            if path:
                text = text.replace(json.dumps(path)[1:-1], base).replace(path, base)
            if file.suffix == ".md":
                text = with_addresses(text, base, repo, below)
            file.write_text(text)


def with_addresses(card: str, base: str, repo: str, below: str) -> str:
    """Let a card's code load the base by its name, and the adapter, in the folder `below`, from the Hub."""
    if base:
        card = BASE.sub(lambda _: f"base = {base!r}", card, count=1)
    return FOLDER.sub(lambda line: fetched(line[1], repo, below), card, count=1)


def fetched(variable: str, repo: str, below: str) -> str:
    """Write code that gets a folder of the repository."""
    code = FETCHED.format(variable, repo)
    return code if below == "." else f'{code} + "/{below}"'
