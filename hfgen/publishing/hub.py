"""Publish on the Hub: export a run and push it."""

import contextlib
import filecmp
import functools
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import httpx2
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import get_token, validate_repo_id
from safetensors.torch import load_file, save_file

from hfgen.config import TrainingConfig
from hfgen.config.commands import DemoConfig
from hfgen.pipelines.loading import INDEX
from hfgen.pipelines.saving import code_files
from hfgen.publishing.card import NOTEBOOK, copy_card, copy_whole, is_own_notebook, is_repository, write_card
from hfgen.publishing.facts import require_run
from hfgen.publishing.licenses import check_license
from hfgen.publishing.pages import PageWriter
from hfgen.runs.folder import CARD, FIGURES, REPORTS
from hfgen.runtimes.site import MARK, PAGE, write_site
from hfgen.training.publisher import Publisher
from hfgen.utils.errors import PublishingError, UserError, first_line
from hfgen.utils.files import complete_or_absent
from hfgen.utils.markdown import NO_CARD, authors_page, authors_sections, linked_pictures, render, with_sections
from hfgen.utils.untrusted import check_content, components_of, own_file, read_index

T = TypeVar("T")

CLASSIFIER_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
TRIES = 3  # per upload, besides the client's own retries
PAUSE_SECONDS = 5


def check_address(repo_id: str, spdx_license: str) -> None:
    """Validate an id and a licence offline.

    Raises:
        UserError: naming the invalid one and the valid form.
    """
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id} is not a Hub id of the form user/name")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id} cannot be published: {' '.join(str(error).split())}") from error
    check_license(spdx_license)


def export(run: Path, folder: Path, *, repo_id: str, spdx_license: str) -> None:
    """Export the files to publish of a finished run or a repository of a gallery: model, card, figures, evaluation.

    Raises:
        UserError: if there is neither, its model is not in safetensors, it comes with code of no
            installed family, or a file is a symbolic link or does not fit its name.
    """
    if is_repository(run):
        copy_model(run, folder)
        copy_card(run, folder, repo_id=repo_id, spdx_license=spdx_license)
        return
    require_run(run)
    copy_model(run, folder)  # first, since it refuses more
    write_card(run, folder, repo_id=repo_id, spdx_license=spdx_license)


def index_file_of(folder: Path) -> str:
    """Return the entry file of a folder's model."""
    return INDEX if (folder / INDEX).is_file() else CLASSIFIER_FILES[0]


def _model_files(source: Path) -> dict[Path, Path]:
    """List a model's files, by relative path: its safetensors and JSON, and the installed files of its classes.

    The copies of these files in the folder may be of another version, or edited. As in `load`, they do not count.
    """
    if index_file_of(source) != INDEX:
        return {Path(name): own_file(source, name) for name in CLASSIFIER_FILES}
    index = read_index(own_file(source, INDEX))
    names = [Path(INDEX)]
    for part in (name for name, value in components_of(index).items() if value[0]):
        found = sorted(own_file(source, part).rglob("*"))
        names += [path.relative_to(source) for path in found if path.is_symlink() or not path.is_dir()]
    if isinstance(index["_class_name"], list):
        names.append(Path(f"{index['_class_name'][0]}.py"))
    files = {name: own_file(source, name) for name in names}
    code = code_files(index)
    for name, file in files.items():
        if file.suffix == ".py" and name not in code:
            raise UserError(f"{file} is code of no installed family of models and cannot be published")
        if file.suffix not in {".json", ".safetensors", ".py"}:
            raise UserError(f"{file} is not a safetensors file and cannot be published")
    for name, installed in code.items():
        copy = own_file(source, name)
        if not copy.is_file() or not filecmp.cmp(copy, installed, shallow=False):
            print(
                f"hfgen: warning: {copy} is missing, edited or of another version; the installed file is published",
                file=sys.stderr,
            )
    return files | code


def copy_model(source: Path, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Copy a model's files, with weights of another data type if one is given.

    Raises:
        UserError: see `export`.
    """
    for name, file in _model_files(source).items():
        check_content(file)
        if dtype is None or file.suffix != ".safetensors":
            copy_whole(file, folder / name)
            continue
        weights = {key: w.to(dtype) if w.is_floating_point() else w for key, w in load_file(file).items()}
        with complete_or_absent(folder / name) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})


def push(
    run: Path,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    spdx_license: str = "apache-2.0",
    demo: bool = False,
) -> str:
    """Publish a finished run on the Hub, in one commit.

    Args:
        run: The run folder.
        repo_id: `user/name`; the repo is created if it does not exist.
        private: Create a private repo.
        create_pr: Propose the commit as a pull request.
        revision: Branch to commit to, created if it does not exist; by default `main`.
        spdx_license: The Hub's licence identifier of the weights.
        demo: Whether `push_demo` follows, for the command in messages.

    Returns:
        The URL of the commit or the pull request, or a message that nothing changed.

    Raises:
        UserError: if the run, the token or the repo do not allow it; nothing was uploaded.
        PublishingError: if the upload failed after retries; the message has the command to retry.
    """
    check_address(repo_id, spdx_license)
    _require_token()
    command = ["hfgen", "push", str(run), "--repo_id", repo_id]
    command += ["--private"] * private + ["--create_pr"] * create_pr
    command += ["--revision", revision] if revision else []
    command += ["--license", spdx_license] if spdx_license != "apache-2.0" else []
    command += ["--demo"] * demo
    later = f"The run is complete; publish it later with: {shlex.join(command)}"
    with tempfile.TemporaryDirectory() as folder:
        export(run, Path(folder), repo_id=repo_id, spdx_license=spdx_license)

        def prepare() -> None:
            index_file = index_file_of(run)
            prepare_repo(repo_id, index_file, spdx_license=spdx_license, private=private, create_pr=create_pr)

        def commit() -> str:
            if revision:
                with _explained(repo_id):
                    HfApi().create_branch(repo_id, branch=revision, exist_ok=True)
            return _commit(Path(folder), repo_id, f"Upload {run.resolve().name}", revision, create_pr)

        _try_again_on_failure(prepare, later)
        # If only the response was lost, a retry would open a second pull request, but no second commit.
        return _try_again_on_failure(commit, later, tries=1 if create_pr else TRIES)


@contextlib.contextmanager
def demo_page(run: Path, repo_id: str, *, private: bool, spdx_license: str) -> Iterator[Path]:
    """Yield a temporary folder with the files of a Space: the page of `hfgen demo` for a run.

    Raises:
        UserError: if there is no finished run, if id, token, or a Space of that id do not allow it, or as
            `hfgen.runtimes.site.write_site` does.
    """
    require_run(run)
    check_address(repo_id, spdx_license)
    _require_token()
    _check_space(repo_id, private)
    with tempfile.TemporaryDirectory() as folder:
        title = repo_id.rpartition("/")[2]
        page = write_site(DemoConfig(runs=[str(run)], output=folder, title=title), repo_id)
        (page.parent / CARD).write_text(render("space.md", title=title, repo_id=repo_id), encoding="utf-8")
        yield page.parent


def _check_space(repo_id: str, private: bool) -> None:
    """Check that a Space does not exist, or holds an earlier page and is as private as asked for."""
    api = HfApi()
    with _explained(f"the Space {repo_id}"):
        if not api.repo_exists(repo_id, repo_type="space"):
            return
        space = api.space_info(repo_id)
        is_there = any(file.rfilename == PAGE for file in space.siblings)
        page = hf_hub_download(repo_id, PAGE, repo_type="space") if is_there else None
    if page is None or MARK not in Path(page).read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"the Space {repo_id} exists and holds no page of hfgen demo; choose another --repo_id")
    if private and not space.private:
        raise UserError(f"the Space {repo_id} exists and is public; make it private on the Hub, or choose another id")


def push_demo(page: Path, repo_id: str) -> str:
    """Publish the files of a Space, as a static one that is as private as the model; return its URL.

    Raises:
        UserError: if the token or a Space of that id does not allow it.
        PublishingError: if the upload failed after retries.
    """
    api = HfApi()

    def upload() -> str:
        with _explained(f"the Space {repo_id}"):
            space = {"repo_id": repo_id, "repo_type": "space"}
            private = api.model_info(repo_id).private
            _check_space(repo_id, private)
            url = api.create_repo(**space, space_sdk="static", private=private, exist_ok=True)
            api.upload_folder(**space, folder_path=page, delete_patterns="files/*", commit_message="Upload the page")
            return str(url)

    return _try_again_on_failure(upload, "The model is published; the same command publishes its page")


def list_published(run: Path, repo_id: str, spdx_license: str) -> list[tuple[str, int]]:
    """List the files that `push` would upload, with sizes in bytes.

    Raises:
        UserError: see `export`; or for an invalid id or licence.
    """
    check_address(repo_id, spdx_license)
    with tempfile.TemporaryDirectory() as folder:
        export(run, Path(folder), repo_id=repo_id, spdx_license=spdx_license)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]


def prepare_repo(repo_id: str, index_file: str, *, spdx_license: str, private: bool, create_pr: bool = False) -> None:
    """Check that a model can be pushed to a repo, and create it if it does not exist.

    Args:
        repo_id: `user/name`.
        index_file: The entry file of the model.
        spdx_license: The Hub's licence identifier of the weights.
        private: Create a private repo.
        create_pr: Check for a pull request only; the repo must exist.

    Raises:
        UserError: if the token or the repo's content does not allow it, or the licence is invalid.
        PublishingError: if the Hub fails.
    """
    check_address(repo_id, spdx_license)
    _require_token()
    api = HfApi()
    with _explained(repo_id):
        ModelCard(f"---\nlicense: {spdx_license}\n---\n").validate()
        if not create_pr:
            if not api.repo_exists(repo_id):
                for repo_type in ("dataset", "space"):
                    if api.repo_exists(repo_id, repo_type=repo_type):
                        raise UserError(
                            f"{repo_id} is a {repo_type} on the Hub; choose another --repo_id for the model"
                        )
            api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: the namespace's default
            api.auth_check(repo_id, write=True)
        info = api.model_info(repo_id)
    if private and not info.private:
        raise UserError(f"{repo_id} already exists and is public; make it private on the Hub, or choose another id")
    there = {file.rfilename for file in info.siblings}
    if others := {INDEX, CLASSIFIER_FILES[0]} & there - {index_file}:
        raise UserError(f"{repo_id} holds a model of another type ({', '.join(others)}); choose another id")


def _require_token() -> None:
    if get_token() is None:
        raise UserError("there is no token for the Hub: run hf auth login, or set HF_TOKEN")


def publish_all(runs: list[Path], namespace: str, *, private: bool, spdx_license: str, collection: str) -> str:
    """Publish finished runs, each under its folder's name, and add them to a collection.

    Returns:
        The URL of the collection.

    Raises:
        PublishingError: if some could not be published, with reasons and commands to retry; the others are published
            and in the collection.
    """
    published, failures = [], []
    for run in runs:
        repo_id = f"{namespace}/{run.name}"
        try:
            print(f"Published: {push(run, repo_id, private=private, spdx_license=spdx_license)}")
            published.append(repo_id)
        except (UserError, PublishingError) as error:
            failures.append(f"{run}: {error}")
    if not published:
        raise PublishingError("\n".join(failures))
    api = HfApi()
    with _explained(namespace):
        created = api.create_collection(collection, namespace=namespace, private=private, exists_ok=True)
        for repo_id in published:
            api.add_collection_item(created.slug, repo_id, "model", exists_ok=True)
    if failures:
        raise PublishingError("\n".join(failures))
    return created.url


class HubPublisher(PageWriter):
    """Publishes a training's model on the Hub: the finished run, and optionally checkpoints.

    Checkpoints are pushed in the background, one at a time; a checkpoint is skipped while another is uploading. A
    failed upload is only reported, since the finished model is pushed at the end.

    Args:
        repo_id: `user/name`.
        private: Create a private repo.
        spdx_license: The Hub's licence identifier of the weights.
        every_save: Whether to publish checkpoints too.
    """

    def __init__(
        self, repo_id: str, *, private: bool = False, spdx_license: str = "apache-2.0", every_save: bool = False
    ):
        self.repo_id, self.private, self.spdx_license = repo_id, private, spdx_license
        self.every_save = every_save
        self.upload: Future[None] | None = None

    def check(self, index_file: str) -> None:
        """Check that the model can be pushed, and create the repo if it does not exist."""
        prepare_repo(self.repo_id, index_file, spdx_license=self.spdx_license, private=self.private)

    def start(self, checkpoint: Path) -> None:
        """Start pushing a checkpoint's model."""
        if not self.every_save or (self.upload and not self.upload.done()):
            return
        folder = tempfile.TemporaryDirectory()
        try:
            copy_model(checkpoint, Path(folder.name))  # now, since the checkpoint may soon be removed
        except (OSError, UserError) as error:
            folder.cleanup()
            print(f"{checkpoint.name} was not published: {error}. Training goes on")
            return
        self.upload = HfApi().run_as_future(self._push, folder, checkpoint.name)

    def _push(self, folder: tempfile.TemporaryDirectory, name: str) -> None:
        with folder:
            try:
                commit = functools.partial(_commit, Path(folder.name), self.repo_id, f"Upload {name}")
                _try_again_on_failure(commit, "Training goes on")
            except Exception as error:  # no error may end the training
                print(f"{name} was not published: {error}")

    def wait(self) -> None:
        """Wait for the current upload."""
        if self.upload:
            self.upload.result()

    def publish(self, run: Path) -> None:
        """Write the page of a finished run, push the run and print its URL."""
        super().publish(run)
        try:
            print("Published:", push(run, self.repo_id, private=self.private, spdx_license=self.spdx_license))
        except UserError as error:  # possible before training, but not any more
            again = f"hfgen push {run} --repo_id {self.repo_id}"
            raise PublishingError(f"{error}. The run is complete; once this is fixed: {again}") from error


def publisher_of(config: TrainingConfig) -> Publisher:
    """Return the publisher of a training configuration; without `push_to_hub` it only writes the run's page."""
    if not config.push_to_hub:
        return PageWriter()
    return HubPublisher(
        config.hub_model_id,
        private=config.hub_private_repo,
        spdx_license=config.hub_license,
        every_save=config.hub_strategy == "every_save",
    )


def _commit(folder: Path, repo_id: str, message: str, revision: str | None = None, create_pr: bool = False) -> str:
    """Commit a folder, and delete stale files of an earlier push among those of a model."""
    api = HfApi()
    with _explained(repo_id):
        before = api.model_info(repo_id, revision=revision)
        existing = [file.rfilename for file in before.siblings]
        linked = _keep_sections(folder, repo_id, before.sha) if CARD in existing else []
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        if NOTEBOOK in existing and not is_own_notebook(Path(hf_hub_download(repo_id, NOTEBOOK, revision=before.sha))):
            files.pop(NOTEBOOK, None)
        own = {name.partition("/")[0] for name in files} - {NOTEBOOK} | {CARD, FIGURES, *REPORTS}
        kept = {*files, *linked}
        stale = [name for name in existing if name.partition("/")[0] in own and name not in kept]
        operations = [CommitOperationAdd(name, path) for name, path in sorted(files.items())]
        operations += [CommitOperationDelete(name) for name in stale]
        commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr)
    if commit.oid == before.sha:
        return f"nothing, since {repo_id} is up to date, {commit.commit_url}"
    return commit.pr_url or commit.commit_url


def _keep_sections(folder: Path, repo_id: str, revision: str) -> list[str]:
    """Add the sections of a repo's model card that hfgen did not write to the card in a folder.

    Returns:
        The pictures in these sections.
    """
    page = Path(hf_hub_download(repo_id, CARD, revision=revision)).read_text(encoding="utf-8", errors="replace")
    renewed = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).exists() else NO_CARD
    if sections := authors_sections(page, renewed):
        (folder / CARD).write_text(with_sections(renewed, sections), encoding="utf-8")
    return linked_pictures(authors_page(page))


def _try_again_on_failure(action: Callable[[], T], later: str, tries: int = TRIES) -> T:
    """Run an action on the Hub, with retries if the Hub fails; the last error message ends with `later`."""
    while True:
        tries -= 1
        try:
            return action()
        except PublishingError as error:
            if not tries:
                raise PublishingError(f"{error}. {later}") from error
        time.sleep(PAUSE_SECONDS)


@contextlib.contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Convert the Hub's errors: refusals to UserError, temporary failures to PublishingError."""
    try:
        yield
    except HfHubHTTPError as error:
        reason = first_line(error.server_message or error)
        match error.response.status_code:
            case 401:
                raise UserError(f"the Hub does not accept this token ({reason}); run hf auth login") from error
            case 403:
                raise UserError(f"this token may not write to {repo_id}: {reason}") from error
            case 404:
                raise UserError(f"there is no repo {repo_id} that this token can access: {reason}") from error
            case 400 | 413 | 422:
                raise UserError(f"the Hub refuses this for {repo_id}: {reason}") from error
        raise PublishingError(f"the Hub failed for {repo_id}: {reason}") from error
    except (OSError, RuntimeError, httpx2.HTTPError, json.JSONDecodeError) as error:
        raise PublishingError(f"the Hub failed for {repo_id}: {first_line(error)}") from error
    except ValueError as error:  # an invalid name or model card
        raise UserError(f"{repo_id} cannot be published: {' '.join(str(error).split())}") from error
