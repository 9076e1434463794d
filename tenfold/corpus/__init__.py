"""Curation: a noisily labelled pile of images becomes a table in random order (design section 4)."""
