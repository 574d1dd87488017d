"""Images only: from bytes to patch tokens. Nothing here knows of language; a module is imported by its own name."""
