"""Small files of JSON: whatever stands in them is read, or told in one line."""

import json
import os
import pathlib

import pytest

from ddim_jax.errors import UserError
from ddim_jax.records import RecordError, parse, parse_object, read_if_sound, read_lines, read_object

ODD = {
    "empty": b"",
    "cut": b'{"step": 3, "lo',
    "NUL": bytes(40),
    "no text": b"\xff\xfe\x00\xd8\xff",
    "UTF-8 cut": b'{"a": "\xc3',
    "list": b"[1]",
    "number": b"7",
    "null": b"null",
    "deeply nested": b"[" * 100_000,
    "deeply nested, whole": b'{"a":' * 500 + b"1" + b"}" * 500,
    "just too deep": b'{"a":' * 65 + b"1" + b"}" * 65,
    "5,000 digits": b'{"a": ' + b"1" * 5000 + b"}",
    "41 digits": b'{"a": -' + b"1" * 41 + b"}",
    "NUL in a text": b'{"a": "\\u0000"}',
    "half a character": b'{"a": "\\ud800"}',
    "half a character in a name": b'{"\\ud800": 1}',
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_record_is_one_line(tmp_path, name):
    path = pathlib.Path(tmp_path / "best.json")
    path.write_bytes(ODD[name])
    with pytest.raises(UserError) as refused:
        read_object(path, "delete it")
    message = str(refused.value)
    assert message.startswith(f"{path} cannot be used: ") and message.endswith("; delete it")
    assert "\n" not in message and len(message) < 400
    assert read_if_sound(path) is None
    with pytest.raises(RecordError):
        parse_object(ODD[name])


def test_what_is_a_record(tmp_path):
    path = tmp_path / "a.json"
    for value in ({}, {"a": [1, 2.5, None, True, "\u00e9", "\udc80"], "b": {"c": {}}}, {"digits": 10**39}):
        path.write_text(json.dumps(value))
        assert read_object(path, "") == value
    assert parse(b"\xef\xbb\xbf[1]") == [1]
    assert parse('{"a":' * 62 + "1" + "}" * 62)


def test_names_and_types_that_must_be_there():
    kinds = {"num": int, "seed": (int, type(None))}
    assert parse_object('{"num": 3, "seed": null}', kinds) == {"num": 3, "seed": None}
    for text, reason in {
        '{"num": 3}': "it lacks 'seed'",
        '{"num": "3", "seed": 1}': "its 'num' is of another type",
        '{"num": true, "seed": 1}': "its 'num' is of another type",
    }.items():
        with pytest.raises(RecordError, match=reason):
            parse_object(text, kinds)


def test_what_is_no_file_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "missing"):
        assert read_if_sound(tmp_path / name) is None
        with pytest.raises(UserError, match=rf"{name} cannot be read: .*; copy it again"):
            read_object(tmp_path / name, "copy it again")
    with pytest.raises(UserError, match=r"pipe cannot be read"):
        list(read_lines(tmp_path / "pipe"))


def test_a_file_without_end_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="it is longer than 64 MiB"):
        read_object(path, "")


def test_lines_among_others(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\r\n' + b"\n".join(ODD.values()) + b'\n{"step": 2}')
    found = list(read_lines(path))
    assert [record for _, record in found if record] == [{"step": 1}, {"step": 2}]
    assert found[0][0] == b'{"step": 1}'
    assert len(found) == len(ODD) + 2 + sum(data.count(b"\n") for data in ODD.values())
