"""Multi-query associative recall (MQAR): the task, training on it, the report."""
