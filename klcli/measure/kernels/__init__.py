"""The kernels: rows of one distribution or two in, one number a row out. No I/O, no state.

``exact`` says what each column is, in float64; ``cpu`` and ``gpu`` say the same faster; ``topk``
and ``truncated`` are for rows of which only a part is known.
"""
