"""Multi-label pretraining: the class-sharded sigmoid head, the monitor, the run (paper sections 2 and 3)."""
