"""Every number of the paper exactly once, as typed configuration."""
