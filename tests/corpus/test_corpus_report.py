"""The corpus report: numbers against counting by hand, the tree, and the page in a real browser at two widths."""

from __future__ import annotations

import hashlib
import io
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from tenfold.cli import app
from tenfold.corpus import charts, survey, tree
from tenfold.corpus.hierarchy import Hierarchy, close, jft_like
from tenfold.corpus.report import report, sentence, thumbnail
from tenfold.corpus.subset import subset
from tenfold.corpus.table import IMAGES, QUARANTINE, Classes, Corpus, commit, rank_of
from tenfold.errors import InputError
from tenfold.manifest import Manifest

EVIL = '<script>alert("x")</script>'
CLASSES = Classes(
    ("thing", "plant", "flower", "building", "odd", "unused"),
    ("thing", "plant", "flower", "building", EVIL, "unused"),
    ((), (0,), (1,), (0,), (1, 3), (0,)),
)
ROWS = 90


def labels_of(i: int) -> dict[int, float]:
    """Labels of row i as three people gave them: flowers are even."""
    own, other = (2, 3) if i % 2 == 0 else (3, 2)
    if i % 9 == 0:
        return {own: 1, other: 1, 4: 1}
    return {own: 2, other: 1} if i % 3 == 0 else {own: 3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, photographs: list[Path]) -> Corpus:
    """A closed corpus of 90 crops of two real photographs, with quarantine and a gate."""
    folder = tmp_path_factory.mktemp("pile") / "garden"
    opened = [Image.open(path) for path in (photographs[1], photographs[0])]
    rows = []
    for i in range(ROWS):
        width, height = (96, 64) if i % 4 else (200 + i, 150)
        stream = io.BytesIO()
        crop = opened[i % 2].crop((i * 3, i, i * 3 + width, i + height))
        crop.save(stream, "PNG" if i % 5 == 0 else "JPEG")
        data = stream.getvalue() if i != 33 else b"\xff\xd8 not a picture"
        rows.append((hashlib.sha256(b"%d" % i).hexdigest(), data, width, height, sorted(labels_of(i).items()), i))
    ranks = rank_of([row[0] for row in rows])
    rows = [rows[i] for i in np.argsort(ranks)]
    table = pa.table(
        {
            "id": [r[0] for r in rows],
            "rank": np.sort(ranks),
            "image": [r[1] for r in rows],
            "width": [r[2] for r in rows],
            "height": [r[3] for r in rows],
            "labels": [[k for k, _ in r[4]] for r in rows],
            "votes": [[float(v) for _, v in r[4]] for r in rows],
            "source": [f"{'web' if r[5] % 3 else 'albums'}/{r[5]}.jpg" for r in rows],
            "flags": [8 if r[5] < 4 else 0 for r in rows],
        },
        schema=IMAGES,
    )
    lance.write_dataset(table, str(folder / "images.lance"), max_rows_per_file=31)
    faults = [{"file": f"a/{EVIL}{i}.jpg", "reason": "corrupt", "detail": "no end"} for i in range(5)]
    faults.append({"file": "b.txt", "reason": "foreign", "detail": "text"})
    lance.write_dataset(pa.Table.from_pylist(faults, schema=QUARANTINE), str(folder / "quarantine.lance"))
    facts = {"salt": "tenfold", "input": "/data/a pile", "files": 94, "repeats": 4, "missing": 2}
    commit(str(folder), "ingested", classes=CLASSES, recipe={}, inputs=["sha256:" + "0" * 64], facts=facts)
    closed, _ = close(Corpus.open(str(folder)))
    gate = {"test": "cifar10 test", "near_duplicates": 3, "tested": 50, "threshold": 5, "passed": False}
    Manifest(kind="gate", uri="", digest="sha256:" + "1" * 64, facts=gate).write(str(folder / "gates" / "t.json"))
    (folder / "gates" / "notes.json").write_text("{}")
    return closed


def rows_by_hand() -> list[tuple[dict[int, float], dict[int, float]]]:
    """For every row the labels given and the closed ones."""
    above = {0: {0}, 1: {0, 1}, 2: {0, 1, 2}, 3: {0, 3}, 4: {0, 1, 3, 4}}
    out = []
    for i in range(ROWS):
        given_, closed = labels_of(i), Counter[int]()
        for label, votes in given_.items():
            closed.update(dict.fromkeys(above[label], votes))
        out.append((given_, dict(closed)))
    return out


# Numbers


def test_numbers_equal_counting_by_hand(corpus: Corpus) -> None:
    c, rows_of = survey.survey(corpus)
    rows = rows_by_hand()
    assert (c.name, c.tag, c.images, c.classes, c.closed) == ("garden", "closed", ROWS, 6, "sum")
    assert c.labels == sum(len(closed) for _, closed in rows)
    assert c.given is not None
    assert c.given.labels == sum(len(g) for g, _ in rows)
    assert dict(zip(c.given.per_image.labels, c.given.per_image.counts, strict=True)) == {
        str(k): v for k, v in Counter(len(g) for g, _ in rows).items()
    }
    for index, name in enumerate(CLASSES.names):
        assert c.per_class[name] == (sum(index in g for g, _ in rows), sum(index in k for _, k in rows))
    assert dict(zip(c.given.votes.labels, c.given.votes.counts, strict=True)) == {
        f"{k:g}": v for k, v in Counter(v for g, _ in rows for v in g.values()).items()
    }
    assert c.given.agreement is not None
    assert c.given.agreement.labels == ["33.3 %", "66.7 %", "100 %"]
    assert c.given.agreement.counts == [10, 20, 60]
    assert c.given.unanimous == round(60 / 90, 4)
    assert c.tail.empty == 1
    assert c.sizes.different == 24
    assert c.sizes.commonest == (96, 64, 67)
    assert c.sizes.width == (96, 96, 288)
    assert sum(c.sizes.short_side.counts) == ROWS
    assert c.flags == {"repeated": 4}
    assert c.sources == [("web", 60), ("albums", 30)]
    assert c.ingest == {"files": 94, "repeats": 4, "missing": 2}
    assert [(q.reason, q.files, len(q.examples)) for q in c.quarantine] == [("corrupt", 5, 3), ("foreign", 1, 1)]
    assert [g["near_duplicates"] for g in c.gates] == [3]  # what is no manifest is passed over
    assert [s["tag"] for s in c.states] == ["ingested", "closed"]
    labels = corpus.images.to_table(columns=["labels"])["labels"].to_pylist()
    for index in range(6):
        have = [row for row, own in enumerate(labels) if index in own]
        assert [row for row in rows_of[index].tolist() if row >= 0] == have[: survey.SAMPLES]


def test_an_unclosed_state_and_a_subset_say_so(corpus: Corpus, tmp_path: Path) -> None:
    given_, _ = survey.survey(Corpus.open(f"{corpus.uri}@ingested"))
    assert (given_.closed, given_.given and given_.given.tag) == ("", "ingested")
    assert sentence(given_).endswith("1.44 labels an image.")
    copy = subset(corpus, str(tmp_path / "part"), n=40)
    part, _ = survey.survey(copy)
    assert (part.closed, part.given, part.images) == ("sum", None, 40)
    assert "ancestors included" in sentence(part)
    report(copy, str(tmp_path / "part.html"))
    page = (tmp_path / "part.html").read_text()
    assert "the state before is not in this corpus" in page
    assert "tenfold corpus subset garden@closed --to part --n 40" in page


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.sets(st.integers(0, 4)), max_size=8), max_size=5))
def test_remembered_rows_are_the_first(batches: list[list[set[int]]]) -> None:
    rows_of, found = np.full((5, survey.SAMPLES), -1, np.int64), np.zeros(5, np.int64)
    seen = 0
    for batch in batches:
        rows = np.array([seen + i for i, labels in enumerate(batch) for _ in labels], np.int64)
        survey._remember(rows, np.array([k for labels in batch for k in sorted(labels)], np.int64), rows_of, found)
        seen += len(batch)
    flat = [labels for batch in batches for labels in batch]
    for index in range(5):
        want = [row for row, labels in enumerate(flat) if index in labels][: survey.SAMPLES]
        assert rows_of[index].tolist() == want + [-1] * (survey.SAMPLES - len(want))
        assert found[index] == len(want)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.integers(0, 500), st.integers(1, 9), min_size=1), st.booleans())
def test_histograms_lose_nothing(values: dict[int, int], whole: bool) -> None:
    got = survey._of_values(Counter({float(k): v for k, v in values.items()}), whole=whole)
    assert sum(got.counts) == sum(values.values())
    assert len(got.labels) == len(got.counts) <= survey.BARS
    assert len(set(got.labels)) == len(got.labels)


# Tree and charts


def test_the_tree_folds_chains_points_to_second_places_and_leaves_out_empty_classes(corpus: Corpus) -> None:
    counts = np.array([90, 55, 50, 55, 10, 0])
    top, shown = tree.class_tree(CLASSES, counts)
    (root,) = top.children
    assert shown == [0, 1, 3, 2, 4]
    assert (root.index, root.empty, root.open) == (0, 1, True)
    plant, building = root.children
    assert [n.index for n in plant.children] == [2, 4]
    assert [(n.index, n.also) for n in building.children] == [(4, 1)]
    line = Classes(("a", "b", "c", "d"), ("a", "b", "c", "d"), ((), (0,), (1,), (1,)))
    top, _ = tree.class_tree(line, np.array([5, 5, 4, 2]))
    assert [(n.index, n.chain) for n in top.children] == [(1, [0])]


def test_inner_classes_stay_where_labels_are_not_closed() -> None:
    line = Classes(("a", "b", "c"), ("a", "b", "c"), ((), (0,), (1,)))
    _, shown = tree.class_tree(line, np.array([0, 0, 4]))
    assert shown == [0, 1, 2]


def test_the_tree_is_bounded_at_any_shape() -> None:
    classes = jft_like()
    top, shown = tree.class_tree(classes, np.arange(len(classes), 0, -1))
    assert len(shown) == tree.SHOWN
    kinds = Counter(kind for kind, _ in tree.lines(top))
    assert kinds["open"] == kinds["close"]
    assert kinds["rest"] == kinds["end"] >= 1
    deep = 3_000  # deeper than Python recurses
    names = tuple(map(str, range(deep)))
    chain = Classes(names, names, ((), *((i,) for i in range(deep - 1))))
    top, shown = tree.class_tree(chain, np.arange(deep, 0, -1))
    assert len(shown) == tree.SHOWN
    assert sum(kind == "open" for kind, _ in tree.lines(top)) == tree.SHOWN
    flat = Classes.flat([str(i) for i in range(5000)])
    top, shown = tree.class_tree(flat, np.ones(5000, int))
    assert (len(shown), top.more) == (tree.SHOWN, 5000 - tree.SHOWN)
    assert Hierarchy.of(chain).statistics.depth == deep - 1


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-3, 1e12))
def test_ticks_are_round_and_cover(top: float) -> None:
    ticks = charts.ticks(top)
    assert ticks[0] == 0
    assert ticks[-1] >= top * (1 - 1e-9)
    assert 2 <= len(ticks) <= 6


def test_charts_are_well_formed_and_escaped() -> None:
    one = charts.bars([EVIL, "2"], {"a & b": [3, 0], "c": [1, 2]}, what='"x" < y', x="x", y="y")
    two = charts.rank_frequency({"all": np.array([1000, 3, 0, 1])}, (100, 20), what="tail", x="rank", y="images")
    for chart in (one, two, charts.bars([], {"a": []}, what="", x="", y="")):
        ET.fromstring(str(chart))
    assert str(one).count("<rect") == 3  # no bar for a count of 0
    assert str(two).count('class="cut"') == 2
    assert [charts.short(v) for v in (0, 950, 12_300, 999_999, 4.56e6, 3e9)] == [
        "0",
        "950",
        "12.3k",
        "1M",
        "4.56M",
        "3G",
    ]


def test_thumbnails(photographs: list[Path]) -> None:
    uri, small = thumbnail(photographs[0].read_bytes())
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < 12_000
    assert not small
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(stream, "PNG")
    assert thumbnail(stream.getvalue())[1]
    assert thumbnail(b"broken")[0].startswith("data:image/svg+xml")


# The page


def test_the_same_state_gives_the_same_page_and_json_has_its_numbers(corpus: Corpus, tmp_path: Path) -> None:
    first = report(corpus, str(tmp_path / "a.html"))
    second = report(corpus, str(tmp_path / "b" / "c.html"))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b" / "c.html").read_bytes()
    assert first.digest == second.digest
    manifest = Manifest.read(str(tmp_path / "a.json"))
    assert (manifest.kind, manifest.digest) == ("report", first.digest)
    assert manifest.inputs == [corpus.digest, "sha256:" + "1" * 64]
    assert survey.Numbers.model_validate(manifest.facts) == survey.survey(corpus)[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.json", "b"]  # nothing else is left behind


def test_text_of_users_is_escaped_and_nothing_points_outside(corpus: Corpus, tmp_path: Path) -> None:
    report(corpus, str(tmp_path / "a.html"))
    page = (tmp_path / "a.html").read_text()
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    for target in re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', page):
        assert target.startswith(("data:", "#")), target
    assert "tenfold corpus ingest &#39;a pile&#39; --to garden" in page
    assert "tenfold corpus close garden@ingested --votes sum" in page


def test_a_report_needs_an_html_path(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not end in \.html"):
        report(corpus, str(tmp_path / "a.txt"))


def test_an_interrupted_report_leaves_the_old_one(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.html"
    report(corpus, str(out))
    before = out.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            report(Corpus.open(f"{corpus.uri}@ingested"), str(out))
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.json"]


def test_the_page_in_a_browser(corpus: Corpus, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    report(corpus, str(tmp_path / "a.html"))
    facts = json.loads((tmp_path / "a.json").read_text())["facts"]
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        for width, scheme in ((1280, "light"), (390, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
            wrong: list[str] = []
            page.on("console", lambda m, wrong=wrong: wrong.append(m.text))
            page.on("pageerror", lambda e, wrong=wrong: wrong.append(str(e)))
            page.on("request", lambda r, wrong=wrong: r.url.startswith(("data:", "file:")) or wrong.append(r.url))
            page.goto(f"file://{tmp_path}/a.html")
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert wrong == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
            assert page.evaluate(broken) == 0
            assert page.locator("svg.chart").count() == 5  # labels, votes, agreement, tail, sizes
            assert page.locator(".sheet img").count() == 60
            numbers = page.evaluate(
                "Object.fromEntries([...document.querySelectorAll('[data-number]')]"
                ".map(e => [e.dataset.number, Number(e.textContent.replaceAll(',', ''))]))"
            )
            assert numbers == {
                "images": facts["images"],
                "labels": facts["labels"],
                "given.labels": facts["given"]["labels"],
                "classes": facts["classes"],
                "quarantined": sum(q["files"] for q in facts["quarantine"]),
            }
            shown = page.locator("#classes .row .count").all_inner_texts()
            assert {int(text.split()[0].replace(",", "")) for text in shown} == {
                now for _, now in facts["per_class"].values() if now
            }
            assert "3 of 50 test images (6 %)" in page.locator("#duplicates").inner_text()
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(18, 21, 26)") == (scheme == "dark")
            page.close()
        browser.close()


# The commands


def test_close_subset_and_report_on_the_command_line(corpus: Corpus, tmp_path: Path) -> None:
    run = CliRunner()
    (tmp_path / "names.txt").write_text("flower\nbuilding\n")
    to = str(tmp_path / "two")
    made = run.invoke(
        app, ["corpus", "subset", f"{corpus.uri}@ingested", "--to", to, "--classes-file", str(tmp_path / "names.txt")]
    )
    assert made.exit_code == 0, made.output
    assert "90 of 90 images" in made.output
    (tmp_path / "tree.json").write_text(
        json.dumps([{"name": "all"}, *({"name": n, "parents": ["all"]} for n in ("flower", "building"))])
    )
    close_it = ["corpus", "close", to, "--hierarchy", str(tmp_path / "tree.json"), "--json"]
    closed = json.loads(run.invoke(app, close_it).stdout)
    assert closed["per_class"]["all"] == [0, 90]
    assert closed["changed"]
    again = run.invoke(app, ["corpus", "close", to])
    assert "labels were closed already; nothing to do" in again.output
    told = json.loads(run.invoke(app, ["corpus", "report", to, "--out", str(tmp_path / "r.html"), "--json"]).stdout)
    assert told["corpus"] == closed["digest"]
    assert (tmp_path / "r.html").exists()
