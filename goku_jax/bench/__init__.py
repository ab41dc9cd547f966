"""Speed and memory, beside what others reach."""
