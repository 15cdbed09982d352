"""Downloads files that others published, once, into the cache, where they are known by their SHA-256.

A download that is broken off, by the network or a kill, goes on where it was: what came is kept as ``NAME.part``, and
asked for no more if the server says that it still has the same file (``If-Range``). Where nobody has published a hash,
that of the first download is kept in ``NAME.sha256`` (as ``sha256sum -c`` reads it), and another file refused later.
"""

import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import posixpath
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from email.message import Message
from typing import IO, NamedTuple

from tqdm import tqdm

from ddim_jax.cache import cache_dir, is_trusted
from ddim_jax.errors import UserError, on_one_line
from ddim_jax.files import MOST_BYTES, check_kind, make_folder, whole_file, write_whole, writing
from ddim_jax.one_writer import one_writer
from ddim_jax.records import read_if_sound
from ddim_jax.version import __version__
from ddim_jax.writers import say

_TIMEOUT_SECONDS = 60
_CHUNK_BYTES = 2**20
# How often a connection may break without a byte in between.
_ATTEMPTS = 3
_MOST_CONNECTIONS = 10_000
_PAUSE_SECONDS = 1.0
# Of files of unknown size: larger than any network that is published.
_MOST_BYTES = 2**36
# What nobody between here and there can change, though it is not encrypted.
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


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


class Address(NamedTuple):
    """File at an address of the web, and what is known of it.

    Attributes:
        url: the address, without a fragment.
        sha256: hash of its bytes, in hexadecimal; empty where nobody has published it.
        md5: another one, for files of which only that is published; empty likewise.
        size: number of its bytes; 0 where it is not known.
        name: name of the file in the cache; empty for that in the address.
    """

    url: str
    sha256: str = ""
    md5: str = ""
    size: int = 0
    name: str = ""


class Fetched(NamedTuple):
    """File that was downloaded, now or earlier.

    Attributes:
        path: where it is.
        sha256: its hash.
    """

    path: pathlib.Path
    sha256: str


class _BrokenOffError(Exception):
    """The connection ended before the file did."""


# After which the rest is asked for.
_BREAKS = (ConnectionError, TimeoutError, http.client.IncompleteRead, http.client.BadStatusLine, _BrokenOffError)


def sha256_of_file(path: pathlib.Path) -> str:
    """Reads a whole file; returns its SHA-256 in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    return _hash_of_file(path, "sha256")


def given_instead(path: str, published: PublishedFile, title: str, setting: str) -> tuple[pathlib.Path, str]:
    """Finds the file that a user gives instead of a published one, and its SHA-256; warns where it is another.

    Args:
        path: of the file.
        published: what it stands for.
        title: of that, in the warning.
        setting: key of the config that names the file.

    Raises:
        UserError: it cannot be read.
    """
    file = pathlib.Path(os.path.expanduser(path))
    check_kind(file, MOST_BYTES)
    try:
        sha256 = sha256_of_file(file)
    except OSError as error:
        raise UserError(f"{setting}: {file} cannot be read: {error.strerror}") from error
    if sha256 != published.sha256:
        say(
            f"warning: {file} is not the published {title} (its SHA-256 starts with {sha256[:8]}, not "
            f"{published.sha256[:8]}); compare figures made with it with each other only"
        )
    return file, sha256


def fetch(published: PublishedFile) -> pathlib.Path:
    """Downloads a file if it is not in the cache, or damaged there; returns its path.

    Raises:
        UserError: it cannot be fetched or saved, or something else came; the message names the setting to use instead.
    """
    path = cache_dir(published.folder) / published.name
    remedy = f"set {published.setting} to a copy of {published.name}"
    address = Address(published.url, published.sha256)
    with _failures_told(address, path, remedy):
        if _has(path, published.sha256):
            return path
        with _alone(path, remedy):
            if not _has(path, published.sha256):
                _download(address, path, published.title, remedy, published.sha256)
    return path


def address_of(text: str) -> Address | None:
    """Reads ``https://...`` or ``http://...``, with or without ``#sha256=...``; None for a text of another form.

    Raises:
        UserError: what follows the ``#`` is no such hash, or there is none where it is needed.
    """
    if not re.match(r"https?://", text, re.IGNORECASE):
        return None
    url, sharp, fragment = text.partition("#")
    try:
        is_address = url.isascii() and not re.search(r"\s", url) and bool(urllib.parse.urlsplit(url).hostname)
    except ValueError:
        is_address = False
    if not is_address:
        raise UserError(f"{on_one_line(text)} is no address: https://HOST/FILE is meant, other letters written as %XX")
    sha256 = fragment.removeprefix("sha256=").lower()
    if sharp and not (fragment.startswith("sha256=") and re.fullmatch(r"[0-9a-f]{64}", sha256)):
        raise UserError(f"{on_one_line(text)}: after the # only sha256=HASH is understood, of 64 hexadecimal digits")
    _check_encrypted(url, sha256)
    return Address(url, sha256)


def fetch_address(address: Address) -> Fetched:
    """Downloads a file if it is not in the cache, or damaged there.

    Raises:
        UserError: it cannot be fetched or saved, it is larger than anything of its kind, or it is not the file that was
            published, or that came at the first download.
    """
    url = address.url
    name = address.name or re.sub(r"[^\w.-]", "_", posixpath.basename(urllib.parse.urlsplit(url).path)) or "file"
    # Other addresses have other folders, so that files of the same name are kept apart.
    path = cache_dir("weights", hashlib.sha256(url.encode()).hexdigest()[:16]) / name[-100:]
    remedy = "download it in another way, and give its path"
    make_folder(path.parent, remedy=remedy)
    if not address.sha256 and not is_trusted(path.parent):
        raise UserError(
            f"{url}: no hash of it is published, and what lies in {path.parent} may be anybody's: append #sha256=HASH, "
            "or set DDIM_JAX_CACHE to a folder of your own"
        )
    with _failures_told(address, path, remedy), contextlib.ExitStack() as stack:
        for is_alone in (False, True):
            if is_alone:  # where it is there, nothing is written: the cache may be read-only
                stack.enter_context(_alone(path, remedy))
            recorded = _recorded(path)
            expected = address.sha256 or recorded
            if expected and _has(path, expected):
                return Fetched(path, expected)
        found = _download(address, path, name, remedy, expected, "" if address.sha256 else recorded)
        _record(path, found)
        if not expected:
            known = "its MD5 is the published one, but " if address.md5 else ""
            say(f"{url}: {known}its SHA-256 is published nowhere: that of this first download, {found}, is kept")
        return Fetched(path, found)


# --- hashes -------------------------------------------------------------------------------------


def _hash_of_file(path: pathlib.Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _has(path: pathlib.Path, sha256: str) -> bool:
    return path.is_file() and sha256_of_file(path) == sha256


def _record_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: pathlib.Path) -> str:
    """Reads the hash of the first download; empty before it."""
    try:
        text = _record_path(path).read_text()
    except (OSError, ValueError):
        return ""
    match = re.match(r"[0-9a-f]{64}\b", text)
    return match[0] if match else ""


def _record(path: pathlib.Path, sha256: str) -> None:
    write_whole(_record_path(path), f"{sha256}  {path.name}\n")


# --- the way ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _failures_told(address: Address, path: pathlib.Path, remedy: str) -> Iterator[None]:
    """Meanwhile what fails is told in one line."""
    try:
        yield
    except (OSError, http.client.HTTPException, _BrokenOffError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        kept = _size(_part_path(path))
        kept = f"; {kept:,} bytes of it are kept, and the same command goes on from there" if kept else ""
        raise UserError(
            f"{address.url} could not be saved as {path} ({' '.join(str(reason).split())}){kept}: {remedy}"
        ) from error


@contextlib.contextmanager
def _alone(path: pathlib.Path, remedy: str) -> Iterator[None]:
    """Meanwhile no other process downloads the file; it is waited for."""
    make_folder(path.parent, remedy=remedy)
    with one_writer(path.parent, path.name, str(path), remedy, of_each_process=True, while_waiting=lambda: None):
        yield


def _part_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.part")


def _note_path(path: pathlib.Path) -> pathlib.Path:
    """What is known of the file that a part is of: its address, size and version."""
    return path.with_name(f"{path.name}.part.json")


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _download(address: Address, path: pathlib.Path, title: str, remedy: str, expected: str, recorded: str = "") -> str:
    """Downloads a file, going on from the part that is there; returns its SHA-256, which is the expected one.

    Args:
        address: the file.
        path: where it is to be.
        title: name in the progress bar.
        remedy: what to do where something else came.
        expected: SHA-256 that it must have; empty for any.
        recorded: the same if that is merely what came first.
    """
    part, note = _part_path(path), _note_path(path)
    _receive(address, part, note, title, can_be_checked=bool(expected or address.md5))
    try:
        found = sha256_of_file(part)
        if recorded and found != recorded:
            raise UserError(
                f"{address.url} is another file than at its first download: SHA-256 {found}, which was {recorded}; "
                f"if you want the new one, name it with that: {address.url}#sha256={found}"
            )
        if expected and found != expected:
            raise UserError(f"what {address.url} sent has SHA-256 {found}, not {expected}: try again, or {remedy}")
        if address.md5 and (md5 := _hash_of_file(part, "md5")) != address.md5:
            raise UserError(f"what {address.url} sent has MD5 {md5}, not {address.md5}: try again, or {remedy}")
        if not expected:
            # Before the file: one without a hash beside it would be downloaded again.
            _record(path, found)
        with whole_file(path, remedy) as whole:
            os.replace(part, whole)
    finally:
        part.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
    return found


def _receive(address: Address, part: pathlib.Path, note: pathlib.Path, title: str, can_be_checked: bool) -> None:
    """Receives all of a file, over as many connections as it takes while each brings something."""
    idle = 0
    for connection in range(_MOST_CONNECTIONS):
        before = _size(part)
        try:
            return _receive_more(address, part, note, title, can_be_checked)
        except urllib.error.HTTPError as error:
            error.close()  # it holds the connection
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                part.unlink()  # of another file than the server has by now
                continue
            raise
        except _BREAKS:
            idle = 0 if _size(part) > before else idle + 1
            if idle == _ATTEMPTS or connection == _MOST_CONNECTIONS - 1:
                raise
            time.sleep(_PAUSE_SECONDS)


def _receive_more(address: Address, part: pathlib.Path, note: pathlib.Path, title: str, can_be_checked: bool) -> None:
    """Receives what is missing of a file, or all of it where what is there cannot be gone on from."""
    known = read_if_sound(note) or {}
    version = str(known.get("version", "")) if known.get("url") == address.url else ""
    done = _size(part) if version or (can_be_checked and known.get("url") == address.url) else 0
    if done and done == known.get("size"):
        return  # all but the hash was done
    headers = {"User-Agent": f"ddim_jax/{__version__}", "Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-"} | ({"If-Range": version} if version else {})
    with urllib.request.urlopen(
        urllib.request.Request(address.url, headers=headers), timeout=_TIMEOUT_SECONDS
    ) as response:
        _check_encrypted(response.geturl(), address.sha256 or address.md5)
        # A server that cannot go on, or has another file by now, sends all of it.
        if response.status != http.client.PARTIAL_CONTENT:
            done = 0
        elif not re.match(rf"bytes {done}-", response.headers.get("Content-Range") or ""):
            part.unlink(missing_ok=True)
            raise _BrokenOffError(f"the server sent another part of the file than that from byte {done:,} on")
        length = int(response.headers.get("Content-Length") or 0)
        total = done + length if length else 0
        _check_contents(address, response.headers, total)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        # A weak one stands for several files.
        version = "" if version.startswith("W/") else version
        write_whole(note, json.dumps({"url": address.url, "version": version, "size": total}))
        with writing(part):
            file = _opened(part, keep=bool(done))
        with file, tqdm(total=total or None, initial=done, desc=title, unit="B", unit_scale=True) as bar:
            while chunk := response.read(_CHUNK_BYTES):
                done += len(chunk)
                if done > _most_bytes(address):
                    part.unlink()
                    note.unlink()
                    raise _too_large(address, done)
                with writing(part):
                    file.write(chunk)
                    file.flush()
                bar.update(len(chunk))
    if done < (total or address.size):
        raise _BrokenOffError(f"the connection ended after {done:,} of {total or address.size:,} bytes")


def _opened(part: pathlib.Path, keep: bool) -> IO[bytes]:
    # A link, which a stranger may have put there, is not followed.
    how = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if keep else os.O_TRUNC)
    how |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(part, how, 0o666), "ab" if keep else "wb")


# --- what is refused ----------------------------------------------------------------------------


def _check_encrypted(url: str, known_hash: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.lower() == "http" and not known_hash and parts.hostname not in _THIS_MACHINE:
        raise UserError(
            f"{url} is not encrypted, so that anybody on the way could send another file: use https:, or append "
            "#sha256=HASH"
        )


def _check_contents(address: Address, headers: Message, total: int) -> None:
    """Refuses what is not the file, before it is received."""
    if (headers.get("Content-Type") or "").lower().startswith("text/html"):
        raise UserError(f"{address.url} is a web page, not weights: give the address of the file itself")
    if total and address.size and total != address.size:
        raise UserError(f"{address.url} has {total:,} bytes, not {address.size:,} as published: it is another file")
    if total > _most_bytes(address):
        raise _too_large(address, total)


def _most_bytes(address: Address) -> int:
    return address.size or _MOST_BYTES


def _too_large(address: Address, size: int) -> UserError:
    return UserError(f"{address.url} has {size:,} bytes or more, {_most_bytes(address):,} are the most: give another")
