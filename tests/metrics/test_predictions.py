"""Predictions and truths: shapes are checked at construction, and nothing here needs torch."""

import subprocess
import sys

import numpy as np
import pytest

from tenfold.errors import InputError
from tenfold.metrics.predictions import Boxes, ClassMap, Poses, Scores, Truth, check_batch, check_classes


def test_nothing_here_imports_torch() -> None:
    code = (
        "import sys, tenfold.metrics, tenfold.metrics.predictions, tenfold.metrics.coco, tenfold.metrics.voc,"
        " tenfold.metrics.miou, tenfold.metrics.topk, tenfold.metrics.compare; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fields_get_their_types_and_empty_lists_their_shapes() -> None:
    found = Boxes([[0, 1, 2, 3]], [0.5], [4])
    assert (found.boxes.dtype, found.scores.dtype, found.classes.dtype) == (np.float32, np.float32, np.int64)
    nothing = Boxes([], [], [])
    assert nothing.boxes.shape == (0, 4)
    assert Poses([], [], [], []).keypoints.shape == (0, 0, 3)
    truth = Truth([[0, 0, 4, 5]], [1])
    assert (truth.areas[0], truth.crowd[0], truth.difficult[0], truth.keypoints.shape) == (20, False, False, (1, 0, 3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Boxes(np.zeros((2, 5)), np.zeros(2), np.zeros(2)), "Boxes.boxes has shape"),
        (lambda: Boxes(np.zeros((2, 4)), np.zeros(3), np.zeros(2)), "Boxes.scores"),
        (lambda: Boxes(np.full((1, 4), np.nan), np.zeros(1), np.zeros(1)), "NaN"),
        (lambda: ClassMap(np.zeros(4)), "ClassMap.classes"),
        (lambda: Scores(np.zeros((2, 2))), "Scores.scores"),
        (lambda: Scores("a"), "Scores.scores"),
        (lambda: Truth(np.zeros((1, 4)), np.zeros(2)), "Truth.categories"),
        (lambda: check_batch(["a"], [], []), "1 image ids"),
        (lambda: check_classes("a.jpg", "prediction", np.array([0, 3]), 3), "image a.jpg: prediction has category 3"),
    ],
)
def test_wrong_fields_are_named(make, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
