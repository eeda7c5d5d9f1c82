"""The Python API: a study, its plan, and the results of what was run, as objects that show themselves in a notebook.

Everything here is also a command; both call the same functions. `gatelab` exports the names, lazily.
"""
