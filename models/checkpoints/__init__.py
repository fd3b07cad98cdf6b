"""Model folders on disk: tokenizers, chat templates, sizes."""
