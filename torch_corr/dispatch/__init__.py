"""The steps of a call of ``corr2d``: normalise the arguments, validate them, plan, run.

:mod:`.pipeline` runs these steps, and :mod:`.fast_path` skips them for the smallest layers.  The
other modules are parts of the pipeline: :mod:`.validation`, :mod:`.padding` (modes other than
zeros), :mod:`.layout`, :mod:`.autocast` and :mod:`.capture`.
"""
