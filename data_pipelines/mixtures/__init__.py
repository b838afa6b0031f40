"""Several datasets read as one stream: shares, order, pipeline."""
