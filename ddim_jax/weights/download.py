"""Downloads files that others published, once, into the cache, where they are known by their SHA-256."""

import hashlib
import http.client
import pathlib
import sys
import urllib.error
import urllib.request
from typing import IO, NamedTuple

from tqdm import tqdm

from ddim_jax.cache import cache_dir
from ddim_jax.errors import UserError
from ddim_jax.files import make_folder, whole_file

_TIMEOUT_SECONDS = 60
_CHUNK_BYTES = 2**20


class PublishedFile(NamedTuple):
    """Published file, of which every copy has the same bytes.

    Attributes:
        title: name in the progress bar.
        url: address of the file.
        sha256: hash of its bytes, in hexadecimal.
        folder: name of its folder in the cache.
        name: name of the file there.
        setting: key of the config by which users give a copy of their own.
    """

    title: str
    url: str
    sha256: str
    folder: str
    name: str
    setting: str


def sha256_of_file(path: pathlib.Path) -> str:
    """Reads a whole file; returns its SHA-256 in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(published: PublishedFile) -> pathlib.Path:
    """Downloads a file if it is not in the cache, or damaged there; returns its path.

    Raises:
        UserError: it cannot be fetched or saved, or something else came; the message names the setting to use instead.
    """
    path = cache_dir(published.folder) / published.name
    remedy = f"set {published.setting} to a copy of {published.name}"
    try:
        if path.is_file() and sha256_of_file(path) == published.sha256:
            return path
        make_folder(path.parent, remedy=remedy)
        with whole_file(path, remedy) as partial:
            with partial.open("wb") as file:
                found = _download(published, file)
            if found != published.sha256:
                raise UserError(
                    f"what {published.url} sent has SHA-256 {found}, not {published.sha256}: try again, or {remedy}"
                )
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(
            f"{published.url} could not be saved as {path} ({' '.join(str(reason).split())}): {remedy}"
        ) from error
    return path


def _download(published: PublishedFile, file: IO[bytes]) -> str:
    """Downloads into an open file, with a progress bar; returns the SHA-256 of what came."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(published.url, timeout=_TIMEOUT_SECONDS) as response:
        total = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, desc=published.title, unit="B", unit_scale=True, file=sys.stderr) as bar:
            while chunk := response.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
                bar.update(len(chunk))
    return digest.hexdigest()
