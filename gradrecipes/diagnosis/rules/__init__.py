"""One pathology a file; each module's docstring is the page of its rule."""
