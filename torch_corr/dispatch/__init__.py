"""The steps of a call of ``corr2d``: normalise the arguments, validate them, plan, run.

:mod:`.pipeline` runs these steps, and :mod:`.fast_path` skips them for the smallest layers.  The
other modules treat validation, non-zero padding, memory layout, autocast and captured programs.
"""
