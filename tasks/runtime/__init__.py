"""Runtime of steps: artifacts, cache, run context, progress."""
