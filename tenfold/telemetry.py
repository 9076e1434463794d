"""What a run tells while it goes on: Prometheus metrics, JSON lines, and a progress line."""
