"""Repositories of the Hugging Face hub: the files that are needed, in the hub's own cache.

``huggingface_hub`` does all that is the hub's: the address (``HF_ENDPOINT``), the token (``HF_TOKEN`` or ``hf auth
login``), the cache (``HF_HUB_CACHE``), ``HF_HUB_OFFLINE``, connections that break. Here it is decided which files are
needed, and what is said where they cannot be had. The texts come first: a repository of another network is refused
before its weights are fetched.
"""

import pathlib
import re
from collections.abc import Collection
from typing import Any, NamedTuple

from ddim_jax.errors import UserError, failed_write, write_error
from ddim_jax.weights.diffusers_folder import SCHEDULERS, check_texts, named_in_index, weight_file_among
from ddim_jax.writers import say

_EXTRA = "pip install 'ddim_jax[hub]'"
_LOG_IN = "log in by `hf auth login` or set HF_TOKEN"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(rf"({_NAME}/{_NAME})(?:@(\S+))?", re.ASCII)

_TIMEOUT_SECONDS = 30.0
# Larger than any U-Net that there is.
_MOST_BYTES = 2**36

# Which of them a message names.
_NAMES_SHOWN = 5

# The libraries that huggingface_hub, as it grew older, has spoken to the network by; their errors are no OSError.
_NETWORK_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


class Repository(NamedTuple):
    """Repository of the hub.

    Attributes:
        name: ``OWNER/NAME``.
        revision: branch, tag or commit; empty for the main branch.
    """

    name: str
    revision: str

    def __str__(self) -> str:
        """Writes what users write."""
        return f"hf:{self.name}{'@' if self.revision else ''}{self.revision}"


class Snapshot(NamedTuple):
    """Files of a repository as they were at a commit.

    Attributes:
        folder: folder of diffusers.
        commit: the commit, in hexadecimal.
    """

    folder: pathlib.Path
    commit: str


def repository_named(text: str) -> Repository | None:
    """Reads ``OWNER/NAME`` or ``OWNER/NAME@REVISION``; None for a text of another form.

    >>> repository_named("google/ddpm-cifar10-32@main")
    Repository(name='google/ddpm-cifar10-32', revision='main')
    >>> repository_named("runs/digits/best") is None
    True
    """
    match = _REPOSITORY.fullmatch(text)
    return Repository(match[1], match[2] or "") if match else None


def fetch_snapshot(repository: Repository) -> Snapshot:
    """Fetches what is needed of a repository, unless the cache has it.

    What the cache has is asked for no more where a commit is named, and taken where the hub cannot be reached.

    Raises:
        UserError: ``huggingface_hub`` is not installed, the hub has no such repository or does not give it away, cannot
            be reached, or the repository holds no network of ours.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(f"{repository}: the Hugging Face hub is read by huggingface_hub: {_EXTRA}") from error
    kept = _kept(huggingface_hub, repository)
    if kept is not None and _COMMIT.fullmatch(repository.revision) and _has_schedule(kept.folder):
        return kept
    try:
        return _fetch(huggingface_hub, repository)
    except UserError:
        raise
    except Exception as error:
        # Beside the hub's own errors there are those of whichever library it speaks to the network by.
        if (refusal := _refusal(errors, repository, error)) is not None:
            raise refusal from error
        if (failure := failed_write(error)) is not None:
            raise write_error("the cache of the Hugging Face hub", failure, "set HF_HUB_CACHE to another") from error
        is_offline = isinstance(error, errors.OfflineModeIsEnabled) or _is_offline(error, errors)
        library = type(error).__module__.partition(".")[0]
        if not (isinstance(error, OSError) or library in _NETWORK_LIBRARIES):
            raise
        if kept is None:
            raise _unreachable(repository, error, is_offline) from error
        if not is_offline:
            say(f"warning: {repository}: the hub cannot be reached ({_reason(error)}): took what its cache has")
        if not _has_schedule(kept.folder):
            say(f"warning: {kept.folder} has no {SCHEDULERS[1]}: the noise schedule is taken from the config")
        return kept


def _fetch(huggingface_hub: Any, repository: Repository) -> Snapshot:
    revision = repository.revision or None
    info = huggingface_hub.HfApi().model_info(
        repository.name, revision=revision, timeout=_TIMEOUT_SECONDS, files_metadata=True
    )
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    texts = _texts(repository, sizes)

    def fetch(name: str, of: str | None) -> pathlib.Path:
        path = pathlib.Path(huggingface_hub.hf_hub_download(repository.name, name, revision=of))
        return path.parents[name.count("/")]

    # The first by the name of the revision, of which the hub's cache keeps then which commit it is, for later.
    folder = fetch(texts[0], revision)
    if folder.name != info.sha:
        raise UserError(f"{repository} was changed at this moment: try again")
    for name in texts[1:]:
        fetch(name, info.sha)
    try:
        check_texts(folder)
        weights = [weight_file_among(sizes, part) for part in _parts(sizes)]
    except UserError as error:
        raise UserError(f"{repository}: {error}") from error
    for name in weights:
        _check_size(repository, name, sizes[name])
        fetch(name, info.sha)
        if name.endswith(".json"):
            for beside in named_in_index(folder / name):
                file = str(pathlib.PurePosixPath(name).with_name(beside))
                _check_size(repository, file, sizes.get(file, 0))
                fetch(file, info.sha)
    say(f"{repository} is commit {info.sha}, in {folder}")
    return Snapshot(folder, info.sha)


def _texts(repository: Repository, names: Collection[str]) -> list[str]:
    """Chooses the texts of a repository that say what its network is, those that are needed most first."""
    configs = [f"{part}config.json" for part in _parts(names)]
    if not configs:
        there = ", ".join(sorted(names)[:_NAMES_SHOWN]) or "nothing"
        raise UserError(
            f"{repository} holds no UNet2DModel: neither config.json nor unet/config.json is there, but {there}"
        )
    return configs + [name for name in ("model_index.json", *SCHEDULERS) if name in names]


def _parts(names: Collection[str]) -> list[str]:
    """Chooses the folders with networks that a folder of diffusers is read for; each ends with a slash, or is empty."""
    if "config.json" in names:
        return [""]
    return [part for part in ("unet_ema/", "unet/") if f"{part}config.json" in names]


def _check_size(repository: Repository, name: str, size: int) -> None:
    if size > _MOST_BYTES:
        raise UserError(f"{repository}: {name} has {size:,} bytes, more than any network of ours: name another")


# --- the hub's cache ----------------------------------------------------------------------------


def _kept(huggingface_hub: Any, repository: Repository) -> Snapshot | None:
    """Finds a repository in the hub's cache; None where it is not, or not with all that is needed."""
    for config in ("config.json", "unet_ema/config.json", "unet/config.json"):
        path = huggingface_hub.try_to_load_from_cache(repository.name, config, revision=repository.revision or None)
        if isinstance(path, str):
            folder = pathlib.Path(path).parents[config.count("/")]
            return Snapshot(folder, folder.name) if _is_whole(folder) else None
    return None


def _is_whole(folder: pathlib.Path) -> bool:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        for part in _parts(names):
            name = weight_file_among(names, part)
            beside = named_in_index(folder / name) if name.endswith(".json") else []
            if not all((folder / name).with_name(file).is_file() for file in beside):
                return False
    except UserError:
        return False
    return True


def _has_schedule(folder: pathlib.Path) -> bool:
    """Tells whether all was fetched that says how a network was trained; other programs fetch the network alone."""
    return any((folder / name).is_file() for name in SCHEDULERS)


# --- what is said -------------------------------------------------------------------------------


def _refusal(errors: Any, repository: Repository, error: Exception) -> UserError | None:
    """Says what the hub has against a repository; None where something else failed."""
    match error:
        case errors.GatedRepoError():
            return UserError(f"{repository} is gated: ask for access on its page of the hub, and {_LOG_IN}")
        case errors.RepositoryNotFoundError():
            return UserError(
                f"{repository}: the Hugging Face hub has no such repository, or it is private: check the name, or "
                f"{_LOG_IN}"
            )
        case errors.RevisionNotFoundError():
            return UserError(f"{repository}: there is no such revision: name a branch, a tag or a commit of it")
        case errors.HFValidationError():
            return UserError(f"{repository} is no name that the Hugging Face hub can have: {_reason(error)}")
        case errors.LocalEntryNotFoundError():
            return None  # something else failed before
        case errors.EntryNotFoundError():
            return UserError(f"{repository}: a file went missing at this moment ({_reason(error)}): try again")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return UserError(f"{repository}: the hub refused the token ({_reason(error)}): {_LOG_IN}")
    return None


def _is_offline(error: BaseException, errors: Any) -> bool:
    return isinstance(error.__cause__, errors.OfflineModeIsEnabled)


def _unreachable(repository: Repository, error: Exception, is_offline: bool) -> UserError:
    if is_offline:
        return UserError(
            f"{repository} is not whole in the cache of the Hugging Face hub, and HF_HUB_OFFLINE forbids to fetch it: "
            "unset that, or name a folder of this machine"
        )
    return UserError(
        f"{repository}: the Hugging Face hub cannot be reached ({_reason(error)}), and its cache has not all of it: "
        "try again, which goes on from the files that are whole, or name a folder of this machine"
    )


def _reason(error: BaseException) -> str:
    """The first sentence of an error, on one line."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
