"""A model that knows a few texts by heart, and the engine and work directory that serve it."""
