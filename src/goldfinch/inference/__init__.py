"""Using a model: a text is read once into a context, which then writes."""
