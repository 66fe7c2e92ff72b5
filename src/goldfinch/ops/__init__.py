"""Stateless mathematics: the WKV6 recurrence and attention."""
