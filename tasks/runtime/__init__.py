"""What every step runs in: artifacts, cache, context, progress."""
