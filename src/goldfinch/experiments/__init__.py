"""The paper's experiments at any scale: models compared on the same data, associative recall, loss by position."""
