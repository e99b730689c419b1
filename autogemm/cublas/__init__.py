"""cuBLASLt through nvmath's bindings: its descriptors, its algorithms. Loaded when needed."""
