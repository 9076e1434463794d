"""Fixtures shared by all tests: a real MinIO server, real photographs."""
