"""Tools of a request and calls of a model: formats, grammars, ids, and earlier calls in the prompt."""
