"""A pair of models served as one."""
