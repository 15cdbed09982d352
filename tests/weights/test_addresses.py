"""Weights at addresses of the web and by name: resumed, known by their hash, and refused when they are others."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from small import changed
from web import serving
from weight_files import random_params, small_config, state_dict, write_torch

import ddim_jax
from ddim_jax.errors import UserError
from ddim_jax.jobs.import_weights import import_weights
from ddim_jax.weights import published_files
from ddim_jax.weights.download import Address, PublishedFile, address_of, fetch, fetch_address
from ddim_jax.weights.forms import read_weights
from ddim_jax.weights.origins import fetched
from ddim_jax.weights.published_files import PUBLISHED_WEIGHTS, PublishedWeights
from ddim_jax.workdir import read_run_record

DATA = bytes(range(256)) * 40
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = DATA[::-1]


@pytest.fixture
def web(monkeypatch, tmp_path):
    """A server with a file, and an empty cache."""
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with serving() as web:
        web.files["/of/file.pt"] = DATA
        yield web


@pytest.fixture
def url(web):
    return f"{web.url}/of/file.pt"


def cached(tmp_path):
    """What is in the cache, by name."""
    return {path.name: path for path in (tmp_path / "cache").rglob("*") if path.is_file()}


def ranges(web):
    return [asked.range for asked in web.asked]


# --- hashes -------------------------------------------------------------------------------------


def test_the_hash_of_the_first_download_is_kept_and_said(web, url, tmp_path, capsys):
    found = fetch_address(Address(url))
    assert (found.path.read_bytes(), found.sha256) == (DATA, SHA256)
    assert (
        f"its SHA-256 is published nowhere: that of this first download, {SHA256}, is kept" in capsys.readouterr().err
    )
    assert found.path.with_name("file.pt.sha256").read_text() == f"{SHA256}  file.pt\n"
    assert sorted(cached(tmp_path)) == ["file.pt", "file.pt.sha256"]
    assert fetch_address(Address(url)) == found
    assert len(web.asked) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("lost", ["removed", "damaged"])
def test_another_file_later_is_refused(web, url, lost):
    path = fetch_address(Address(url)).path
    path.unlink() if lost == "removed" else path.write_bytes(DATA[:50])
    web.files["/of/file.pt"] = OTHER
    with pytest.raises(UserError, match=rf"another file than at its first download: .* was {SHA256}; if") as caught:
        fetch_address(Address(url))
    # The message says how to have it nevertheless, and then it is the one that is known.
    named = str(caught.value).rpartition(" ")[2]
    assert fetch_address(address_of(named)).path.read_bytes() == OTHER
    assert fetch_address(Address(url)).path.read_bytes() == OTHER
    web.files["/of/file.pt"] = DATA
    path.unlink()
    with pytest.raises(UserError, match="another file than at its first download"):
        fetch_address(Address(url))


def test_a_damaged_file_is_fetched_again(web, url):
    path = fetch_address(Address(url)).path
    path.write_bytes(OTHER)
    assert fetch_address(Address(url)).path.read_bytes() == DATA


def test_a_hash_that_is_given_decides(web, url, tmp_path):
    address = address_of(f"{url}#sha256={SHA256.upper()}")
    assert address == Address(url, SHA256)
    assert fetch_address(address).sha256 == SHA256
    with pytest.raises(UserError, match=f"sent has SHA-256 {SHA256}, not {'0' * 64}: try again"):
        fetch_address(Address(url, "0" * 64))
    assert cached(tmp_path)["file.pt"].read_bytes() == DATA
    assert sorted(cached(tmp_path)) == ["file.pt", "file.pt.sha256"]


def test_a_published_md5(web, url, tmp_path, capsys):
    with pytest.raises(UserError, match=rf"has MD5 {hashlib.md5(DATA).hexdigest()}, not 00: try again"):
        fetch_address(Address(url, md5="00"))
    assert cached(tmp_path) == {}
    fetch_address(Address(url, md5=hashlib.md5(DATA).hexdigest()))
    assert "its MD5 is the published one, but its SHA-256 is published nowhere" in capsys.readouterr().err


def test_addresses():
    assert address_of("https://a.org/b?c=d") == Address("https://a.org/b?c=d")
    assert address_of(f"http://a.org/b#sha256={SHA256}") == Address("http://a.org/b", SHA256)
    for path in ("runs/digits", "gs://a/b", "https", "a#sha256=0", "ftp://a/b"):
        assert address_of(path) is None
    for text in ("https://", "https:///b", "https://a b/c", "https://a.org/ä", "https://[1/b"):
        with pytest.raises(UserError, match="is no address"):
            address_of(text)
    with pytest.raises(UserError, match=r"not encrypted, .*: use https:, or append #sha256=HASH"):
        address_of("http://a.org/b")
    for fragment in ("#", "#sha256=12", "#md5=12", f"#{SHA256}"):
        with pytest.raises(UserError, match="after the # only sha256=HASH is understood"):
            address_of(f"https://a.org/b{fragment}")


def test_a_cache_of_strangers_is_not_believed(web, url, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(UserError, match="may be anybody's: append #sha256=HASH, or set DDIM_JAX_CACHE"):
        fetch_address(Address(url))
    assert fetch_address(Address(url, SHA256)).path.read_bytes() == DATA


# --- the way ------------------------------------------------------------------------------------


def test_connections_that_break_off_are_gone_on_with(web, url):
    web.breaks = [1000, 0, 3000]
    assert fetch_address(Address(url)).path.read_bytes() == DATA
    assert ranges(web) == ["", "bytes=1000-", "bytes=1000-", "bytes=4000-"]


def test_a_server_that_is_gone_leaves_what_came(web, url, tmp_path):
    web.breaks = [1000] + [0] * 10
    message = (
        r"ended after 1,000 of 10,240 bytes\); 1,000 bytes of it are kept, and the same command goes on from there"
    )
    with pytest.raises(UserError, match=message) as caught:
        fetch_address(Address(url))
    assert "\n" not in str(caught.value)
    web.breaks = []
    web.asked.clear()
    assert fetch_address(Address(url)).path.read_bytes() == DATA
    assert ranges(web) == ["bytes=1000-"]
    assert sorted(cached(tmp_path)) == ["file.pt", "file.pt.sha256"]


@pytest.mark.parametrize("case", ["another file", "no ranges", "no versions"])
def test_a_part_that_cannot_be_gone_on_from(web, url, case):
    web.tags = case != "no versions"
    web.breaks = [1000] + [0] * 10
    with pytest.raises(UserError, match="could not be saved"):
        fetch_address(Address(url))
    web.breaks = []
    web.ranges = case != "no ranges"
    expected = web.files["/of/file.pt"] = OTHER if case == "another file" else DATA
    assert fetch_address(Address(url)).path.read_bytes() == expected


def test_without_versions_a_known_hash_suffices(web, url):
    web.tags = False
    web.breaks = [1000]
    assert fetch_address(Address(url, SHA256)).path.read_bytes() == DATA
    assert ranges(web) == ["", "bytes=1000-"]


def test_a_part_of_another_file_than_the_hash_says_is_thrown_away(web, url, tmp_path):
    web.tags = False
    web.breaks = [1000] + [0] * 10
    web.files["/of/file.pt"] = OTHER
    with pytest.raises(UserError):
        fetch_address(Address(url, SHA256))
    web.breaks = []
    web.files["/of/file.pt"] = DATA
    with pytest.raises(UserError, match="try again"):
        fetch_address(Address(url, SHA256))
    assert fetch_address(Address(url, SHA256)).path.read_bytes() == DATA


def test_a_killed_download_goes_on_where_it_was(web, url, tmp_path):
    """SIGKILL in the middle; files whose hash is known, such as Inception's, go the same way."""
    web.files["/large"] = large = os.urandom(2**20) * 8
    web.pause_after = 2**22
    published = PublishedFile("large", f"{web.url}/large", hashlib.sha256(large).hexdigest(), "f", "large.bin", "a.b")
    program = "import json, sys; from ddim_jax.weights import download as d; "
    program += "d.fetch(d.PublishedFile(*json.loads(sys.argv[1])))"
    process = subprocess.Popen([sys.executable, "-c", program, json.dumps(published)])
    part = tmp_path / "cache" / "f" / "large.bin.part"
    while not (part.exists() and part.stat().st_size >= 2**21):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    web.pause_after = None
    there = part.stat().st_size
    web.asked.clear()
    assert fetch(published).read_bytes() == large
    assert ranges(web) == [f"bytes={there}-"]
    assert sorted(cached(tmp_path)) == ["large.bin"]


def test_what_is_no_file_of_weights(web, url):
    web.types["/of/file.pt"] = "text/html; charset=utf-8"
    with pytest.raises(UserError, match="is a web page, not weights"):
        fetch_address(Address(url))
    with pytest.raises(UserError, match=r"/gone could not be saved as .* \(Not Found\)"):
        fetch_address(Address(f"{web.url}/gone"))
    with pytest.raises(UserError, match=r"Connection refused"):
        fetch_address(Address("http://127.0.0.1:9/file"))


def test_sizes_are_bounded(web, url, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="has 10,240 bytes, not 10,241 as published: it is another file"):
        fetch_address(Address(url, size=10_241))
    monkeypatch.setattr("ddim_jax.weights.download._MOST_BYTES", 10_000)
    with pytest.raises(UserError, match="has 10,240 bytes or more, 10,000 are the most"):
        fetch_address(Address(url))
    assert cached(tmp_path) == {}


# --- weights ------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(web, tmp_path):
    """Weights at an address."""
    web.files["/weights.ckpt"] = write_torch(tmp_path / "weights.ckpt", state_dict(small_config(), "ddim")).read_bytes()
    return f"{web.url}/weights.ckpt"


def test_weights_at_an_address(web, checkpoint, tmp_path):
    config = changed(small_config(), weights__path=checkpoint)
    import_weights(config, tmp_path / "run")
    sha256 = hashlib.sha256(web.files["/weights.ckpt"]).hexdigest()
    record = read_run_record(tmp_path / "run" / "import")
    assert record["origin"] == {"asked": checkpoint, "url": checkpoint, "sha256": sha256}
    params = ddim_jax.load(tmp_path / "run").variables["params"]
    jax.tree.map(np.testing.assert_array_equal, params, random_params(small_config()))
    assert ddim_jax.load_weights(f"{checkpoint}#sha256={sha256}", small_config()).step == 0
    # The workdir knows which weights were meant, even where the cache was lost and others lie there now.
    for path in cached(tmp_path).values():
        path.unlink()
    web.files["/weights.ckpt"] = write_torch(tmp_path / "b", state_dict(small_config(), "ddim", 1)).read_bytes()
    with pytest.raises(UserError, match=f"sent has SHA-256 .*, not {sha256}"):
        import_weights(config, tmp_path / "run")


def test_weights_by_name(web, checkpoint, monkeypatch, capsys):
    row = PublishedWeights("a network", "", "", "https://a.org", checkpoint, file="of_mine.ckpt")
    monkeypatch.setitem(PUBLISHED_WEIGHTS, "mine", row)
    found = fetched("published:mine")
    assert found.path.name == "of_mine.ckpt"
    assert found.facts["url"] == checkpoint
    assert ddim_jax.load_weights("published:mine", small_config()).config == small_config()
    with pytest.raises(UserError, match="published file 'ema-cifar1' does not exist; did you mean 'ema-cifar10'"):
        read_weights("published:ema-cifar1")
    with pytest.raises(UserError, match=r"lies on Google Drive, .*: download it from https://drive\.google\.com/"):
        ddim_jax.load("published:ddim-celeba")


def test_the_table_of_published_files():
    for name, row in PUBLISHED_WEIGHTS.items():
        assert fetched(f"./published:{name}") is None
        assert row.source.startswith("https://")
        if row.url:
            assert address_of(row.url) == Address(row.url)
            assert published_files.published_address(name).url == row.url
        assert len(row.md5) in (0, 32) and len(row.sha256) in (0, 64)
        file = row.config.partition(":")[0]
        assert not file or (pathlib.Path(__file__).parents[2] / file).exists()
    urls = [row.url for row in PUBLISHED_WEIGHTS.values() if row.url]
    assert len(set(urls)) == len(urls)
