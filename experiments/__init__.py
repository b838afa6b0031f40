"""One runnable configuration per file: ``get_config()`` returns it."""
