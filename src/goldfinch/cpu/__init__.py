"""C++ kernels for CPUs: how they are built, and what they share. Each kernel is next to its operation."""
