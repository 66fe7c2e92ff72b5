"""C++ kernels for CPUs: how they are built, and what all of them share. Each kernel stands beside its operation."""
