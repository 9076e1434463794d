"""A split of a data set as COCO JSON again: the truth for evaluation by COCO's tools, and for everyone else's."""

from __future__ import annotations

from typing import Any

from tenfold.transfer.data.table import Dataset


def coco_json(dataset: Dataset, split: str) -> dict[str, Any]:
    """Images, annotations and categories in COCO's form, in the pixels of the stored images.

    Category ids are those of the source where it had any, else the index + 1. Difficult objects carry `ignore` 1.
    """
    facts = dataset.facts
    numbers = facts.get("category_ids") or list(range(1, len(dataset.categories) + 1))
    shared: dict[str, Any] = {}
    if facts["keypoints"]:
        shared = {"keypoints": facts["keypoints"], "skeleton": [[a + 1, b + 1] for a, b in facts["skeleton"]]}
    images, annotations = [], []
    for row, found in dataset.annotations(split):
        image = row["image_id"]
        images.append({"id": image, "file_name": row["source"], "width": found.width, "height": found.height})
        for i in range(len(found)):
            x1, y1, x2, y2 = (float(value) for value in found.boxes[i])
            note: dict[str, Any] = {
                "id": int(found.ids[i]),
                "image_id": image,
                "category_id": numbers[int(found.categories[i])],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(found.areas[i]),
                "iscrowd": int(found.crowd[i]),
            }
            if found.masks and found.masks[i]:
                size = [found.height, found.width]
                note["segmentation"] = {"size": size, "counts": found.masks[i].decode("ascii")}
            if found.keypoints.shape[1]:
                note["keypoints"] = [float(value) for value in found.keypoints[i].ravel()]
                note["num_keypoints"] = int((found.keypoints[i, :, 2] > 0).sum())
            if found.difficult[i]:
                note["ignore"] = 1
            annotations.append(note)
    categories = [{"id": n, "name": name, **shared} for n, name in zip(numbers, dataset.categories, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}
