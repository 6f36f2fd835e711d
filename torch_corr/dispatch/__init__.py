"""The path of a call: normalise the arguments, validate them, plan, run.

:mod:`.pipeline` is that path and :mod:`.fast_path` its one exception. Each other module has one
subject: validation, padding with anything but zeros, memory layout, autocast, captured programs.
"""
