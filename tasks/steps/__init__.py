"""Prefect tasks, one module per subject."""
