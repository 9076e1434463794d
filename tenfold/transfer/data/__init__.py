"""Annotated data sets: any of the field's formats in, one kind of Lance table out (`tenfold dataset`).

table     the schema, Dataset.open, Annotations, write_dataset
coco, voc, imagenet, lmo    readers of the field's formats
rle       masks as COCO's run lengths
faults    what was wrong with annotations, named by file and id
check     reads everything, writes nothing
draw      annotations on their image
"""
