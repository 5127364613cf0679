"""Fields of request bodies: models, validation, and the spellings of other servers."""
