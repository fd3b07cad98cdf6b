"""The client for auxiliary language models behind OpenAI-compatible endpoints."""
