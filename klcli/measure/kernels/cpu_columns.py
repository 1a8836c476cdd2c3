"""Where the compiled kernels of the CPU write what they find."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class SideColumns(NamedTuple):
    """Where the columns of one model go: (rows,), the last two (rows, k)."""

    nll: npt.NDArray[np.float64]
    rank: npt.NDArray[np.int64]
    entropy: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    padded_mass: npt.NDArray[np.float64]
    usable: npt.NDArray[np.bool_]
    top_ids: npt.NDArray[np.int64]
    top_probabilities: npt.NDArray[np.float64]


class PairColumns(NamedTuple):
    """Where the columns of a comparison go: (rows,)."""

    kl: npt.NDArray[np.float64]
    kl_reverse: npt.NDArray[np.float64]
    jsd: npt.NDArray[np.float64]
    tv: npt.NDArray[np.float64]
    nll_difference: npt.NDArray[np.float64]
    delta_p: npt.NDArray[np.float64]
    overlap_5: npt.NDArray[np.float64]
