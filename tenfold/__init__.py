"""Tenfold: what would ten times the data buy?

The library turns images into numbers and model bundles; it knows nothing of Kubeflow Pipelines or KServe.
Nothing is imported here, so that ``tenfold --help`` stays fast.
"""

__version__ = "0.1.0"
