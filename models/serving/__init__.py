"""Serves a pair of models as one."""
