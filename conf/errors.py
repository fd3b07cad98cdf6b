"""Base class of errors whose message is meant for users."""


class ReadableError(Exception):
    """Its message says what is wrong, where, and how to fix it. The command line prints it without a stack trace."""
