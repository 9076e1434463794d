"""Addresses: one spelling for each place, and no way out of a folder."""

import os
import posixpath
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold import storage
from tenfold.errors import InputError
from tenfold.storage.uris import split

SEGMENT = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda s: s not in {".", ".."}
)
BUCKET = st.from_regex(r"[a-z0-9][a-z0-9-]{2,10}", fullmatch=True)


@given(BUCKET, st.lists(SEGMENT, max_size=4))
def test_join_then_split_gives_the_parts(bucket: str, parts: list[str]) -> None:
    uri = storage.join(f"s3://{bucket}", *parts)
    assert split(uri) == (bucket, "/".join(parts))
    assert storage.normalise(uri) == uri


@given(BUCKET, st.lists(st.sampled_from(["a", "b c", ".", "..", "", "ä"]), max_size=6))
def test_normalise_is_idempotent_and_stays_in_the_bucket(bucket: str, parts: list[str]) -> None:
    once = storage.normalise("/".join([f"s3://{bucket}", *parts]))
    assert storage.normalise(once) == once
    assert once == f"s3://{bucket}" or once.startswith(f"s3://{bucket}/")
    assert not once.endswith("/")
    assert storage.normalise(f"s3a://{bucket}/x") == storage.normalise(Path(f"s3://{bucket}/x"))


@given(st.lists(SEGMENT, min_size=1, max_size=4))
def test_a_path_and_its_file_address_are_one_place(parts: list[str]) -> None:
    path = posixpath.normpath("/" + "/".join(parts))
    assert storage.normalise(path) == storage.normalise(Path(path)) == storage.normalise(Path(path).as_uri()) == path


@given(st.lists(SEGMENT, min_size=1, max_size=3), st.lists(SEGMENT, min_size=1, max_size=3))
def test_join_never_leads_out(root: list[str], parts: list[str]) -> None:
    folder = "/" + "/".join(root)
    assert storage.join(folder, "/" + "/".join(parts), "/").startswith(folder + "/")


def test_local_forms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.normalise("a/../b/") == os.path.join(os.getcwd(), "b")
    assert storage.normalise("~/corpus") == "/home/someone/corpus"
    assert storage.normalise("file:///a%20b") == "/a b"
    assert storage.join("/", "a") == "/a"
    assert storage.join("s3://b", "") == "s3://b"


@pytest.mark.parametrize("wrong", ["gs://bucket/x", "hdfs://host/x", "https://host/x", "s3://", ""])
def test_what_is_no_address(wrong: str) -> None:
    with pytest.raises(InputError) as caught:
        storage.normalise(wrong)
    assert "s3://BUCKET" in caught.value.cure
