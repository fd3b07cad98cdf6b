"""Errors that people read. Knows: nothing. Must not know: where they are raised."""


class ReadableError(Exception):
    """The message alone says what was wrong, where, and what to do; the command line shows no stack trace."""
