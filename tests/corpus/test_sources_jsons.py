"""Large JSON element by element: the same values as the standard parser, whatever the pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenfold.corpus.sources import jsons
from tenfold.errors import InputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=90),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    document=st.dictionaries(st.text(max_size=8), st.lists(VALUES, max_size=6) | VALUES, max_size=5),
    piece=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_equals_json_load(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    document: dict[str, Any],
    piece: int,
    indent: int | None,
    ascii_only: bool,
) -> None:
    monkeypatch.setattr(jsons, "PIECE", piece)
    path = tmp_path / "document.json"
    path.write_text(json.dumps(document, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    got: dict[str, Any] = {key: [] for key, value in document.items() if value == []}
    for key, value in jsons.elements(path):
        if isinstance(document[key], list):
            got.setdefault(key, []).append(value)
        else:
            got[key] = value
    assert got == document


@pytest.mark.parametrize("text", ["", "[1]", '{"a": [1, 2', '{"a": [1 2]}', '{"a": tru}', '{"a": [{"b": "c}]}'])
def test_damaged_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "document.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"document\.json"):
        list(jsons.elements(path))


def test_damage_is_seen_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in the middle is reported there; the rest of a large file is not read into memory first."""
    monkeypatch.setattr(jsons, "PIECE", 1000)
    path = tmp_path / "document.json"
    path.write_text('{"a": [{"b" 1}, ' + ", ".join(["1"] * 100_000) + "]}")
    reader = jsons._Reader(path)
    reader.expect("{")
    reader.value()
    reader.expect(":")
    reader.expect("[")
    with pytest.raises(InputError, match="is not JSON"):
        reader.value()
    assert len(reader.text) <= 1000
    reader.close()
