"""What the sampling process runs: the standard library and, where there is a GPU, pynvml.

Nothing here imports the rest of the library, so the process stays small and starts at once.
"""
