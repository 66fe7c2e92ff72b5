"""Stateless maths: the WKV6 recurrence, attention, and the loss of large vocabularies."""
