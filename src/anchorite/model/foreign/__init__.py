"""Checkpoints of the original family, read without executing anything.

`reader` and what it imports need the standard library alone and run in a process of their own with little memory;
`sandbox` starts that process, and `checkpoint` makes a detector of what it found.
"""
