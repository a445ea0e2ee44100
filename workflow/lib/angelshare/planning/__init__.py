"""Planning before spending: what a study still needs, what that will cost, and whether it may.

Joules, seconds and tokens as 95 % intervals. Everything that a starting workflow calls is plain
Python over small JSON files; what needs data frames is imported by the commands alone.
"""
