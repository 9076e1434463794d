"""Manifests: round trip, atomicity, digests that stay and digests that change."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import MinioServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tenfold import manifest, storage
from tenfold.errors import InputError, StorageError
from tenfold.manifest import Manifest, code_version, digest_json, digest_tree, step_key

D = "sha256:" + "0" * 64
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(params=["file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, minio: MinioServer) -> str:
    return str(tmp_path / "root") if request.param == "file" else minio.root


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=st.dictionaries(st.text(max_size=3), JSON, max_size=3), facts=st.dictionaries(st.text(max_size=3), JSON))
def test_round_trip(tmp_path: Path, recipe: dict, facts: dict) -> None:
    written = Manifest(kind="corpus", uri="s3://b/c", digest=D, inputs=[D], recipe=recipe, facts=facts)
    written.write(str(tmp_path / "m.json"))
    assert Manifest.read(str(tmp_path / "m.json")) == written


def test_what_is_no_manifest(root: str) -> None:
    for data in (b"", b"{}", b"\x89PNG\r\n", b'{"kind": "corpus", "uri": "a", "digest": "md5:1"}', b"[1]"):
        storage.write_bytes(storage.join(root, "m.json"), data)
        with pytest.raises(InputError, match=r"m\.json is not a Tenfold manifest"):
            Manifest.read(storage.join(root, "m.json"))
    with pytest.raises(StorageError, match="is not there"):
        Manifest.read(storage.join(root, "none.json"))


def test_too_large_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "LARGEST", 1 << 20)
    (tmp_path / "m.json").write_bytes(b" " * (1 << 20) + b"{")
    with pytest.raises(InputError, match="larger than 1 MiB"):
        Manifest.read(str(tmp_path / "m.json"))
    with pytest.raises(InputError, match="is a folder"):
        Manifest.read(str(tmp_path))


@pytest.mark.parametrize("wrong", [{"digest": "x"}, {"inputs": ["x"]}, {"kind": "thing"}, {"more": 1}])
def test_wrong_fields_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Manifest.model_validate({"kind": "corpus", "uri": "a", "digest": D, **wrong})


def test_readers_see_the_old_or_the_new(root: str) -> None:
    uri = storage.join(root, "m.json")
    one, two = (Manifest(kind="report", uri="a", digest=D, facts={"n": [n] * 20_000}) for n in (1, 2))
    one.write(uri)
    with ThreadPoolExecutor(3) as pool:
        writing = pool.submit(lambda: [m.write(uri) for m in (two, one) * 8])
        while not writing.done():
            assert Manifest.read(uri) in (one, two)


# ---------------------------------------------------------------------------------------------------------------------
# Digests


@given(JSON)
def test_digest_json_does_not_depend_on_order(value: object) -> None:
    assert digest_json({"a": value, "b": 1}) == digest_json({"b": 1, "a": value})
    assert digest_json([value]) != digest_json([value, value])


class _Colour(enum.Enum):
    RED = "red"


class _Model(BaseModel):
    a: int = 1


@dataclasses.dataclass
class _Data:
    a: int = 1


def test_digest_json_is_canonical() -> None:
    text = rb'{"a":"\u00e4","b":[1,2.5,null]}'
    assert digest_json({"b": [1, 2.5, None], "a": "ä"}) == "sha256:" + hashlib.sha256(text).hexdigest()
    # Stored manifests hold these, so the form must never change.
    assert digest_json({"b": [1, 2.5, None], "a": "ä"}).startswith("sha256:4b12564ba8344d19")
    plain = digest_json({"a": 1})
    assert digest_json(_Model()) == digest_json(_Data()) == digest_json({"a": np.int64(1)}) == plain
    assert digest_json((1, 2)) == digest_json([1, 2]) == digest_json({2, 1}) == digest_json(np.array([1, 2]))
    assert digest_json(_Colour.RED) == digest_json("red")
    assert digest_json(Path("/a")) == digest_json("/a")
    with pytest.raises(TypeError, match="object has no canonical form"):
        digest_json({"a": object()})


def test_digests_are_the_same_in_every_process() -> None:
    code = "from tenfold.manifest import digest_json; print(digest_json({'s': {'b', 'a', 'c'}, 'd': {'y': 1, 'x': 2}}))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_digest_tree_changes_with_anything(root: str, tmp_path: Path, minio: MinioServer) -> None:
    files = {"a": b"1", "b/c": b"2" * 10_000, "b/d": b""}
    for name, data in files.items():
        storage.write_bytes(storage.join(root, name), data)
    seen = {digest_tree(root)}

    def differs() -> bool:
        before = len(seen)
        seen.add(digest_tree(root))
        return len(seen) == before + 1

    storage.write_bytes(storage.join(root, "b/c"), b"2" * 9_999 + b"3")
    assert differs()
    storage.write_bytes(storage.join(root, "e"), b"")
    assert differs()
    storage.remove(storage.join(root, "e"))
    storage.remove(storage.join(root, "a"))
    storage.write_bytes(storage.join(root, "A"), b"1")
    assert differs()
    for name, data in files.items():  # and is that of the content, wherever it lies
        for place in (storage.join(root, "same"), str(tmp_path / "other"), minio.uri("other")):
            storage.write_bytes(storage.join(place, name), data)
    assert digest_tree(storage.join(root, "same")) in seen
    assert digest_tree(str(tmp_path / "other")) == digest_tree(minio.uri("other")) == digest_tree(f"{root}/same")


def test_step_key() -> None:
    key = step_key({"a": 1}, ["x", "y"], "1")
    assert key == step_key({"a": 1}, ["y", "x"], "1")
    assert (
        len({key, step_key({"a": 2}, ["x", "y"], "1"), step_key({"a": 1}, ["x"], "1"), step_key({"a": 1}, [], "2")})
        == 4
    )


# ---------------------------------------------------------------------------------------------------------------------
# The version of the code, in a checkout of its own


def version_of(root: Path, **env: str) -> str:
    code = "from tenfold.manifest import code_version; print(code_version())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


def test_code_version(tmp_path: Path) -> None:
    source = Path(manifest.__file__).parent
    (tmp_path / "tenfold").mkdir()
    for name in ("__init__.py", "errors.py", "manifest.py"):
        shutil.copy(source / name, tmp_path / "tenfold")
    shutil.copytree(source / "storage", tmp_path / "tenfold/storage", ignore=shutil.ignore_patterns("__pycache__"))
    plain = version_of(tmp_path)
    assert re.fullmatch(r"\d+\.\d+\.\d+", plain)
    assert version_of(tmp_path, TENFOLD_COMMIT="1234567890abcdef") == f"{plain}+1234567890"

    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    clean = version_of(tmp_path)
    assert re.fullmatch(re.escape(plain) + r"\+[0-9a-f]{10}", clean)
    (tmp_path / "README").write_text("not code")
    assert version_of(tmp_path, GIT_DIR="/nowhere") == clean
    seen = {clean}
    for text in ("# one\n", "# two\n"):
        (tmp_path / "tenfold/errors.py").write_text((source / "errors.py").read_text() + text)
        seen.add(dirty := version_of(tmp_path))
        assert re.fullmatch(re.escape(clean) + r"\.dirty-[0-9a-f]{8}", dirty)
    assert len(seen) == 3
    assert version_of(tmp_path, PATH="/nowhere") == plain


def test_code_version_is_read_once() -> None:
    assert code_version() is code_version()
