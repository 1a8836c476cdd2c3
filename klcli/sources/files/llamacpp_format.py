"""The format of llama.cpp's base files: what ``llama-perplexity --kl-divergence-base`` leaves.

Little-endian, for n_chunk chunks of n_ctx tokens of one text:

=======================  ===================================================================
bytes                    what
=======================  ===================================================================
8                        ``_logits_``
4 + 4 + 4                uint32 n_ctx, int32 n_vocab, int32 n_chunk
4 · n_ctx · n_chunk      int32 token ids of the chunks
2 · nv a scored target   one *record* for each of the targets n_ctx/2 + 1 … n_ctx - 1 of a chunk,
                         chunk after chunk; nv = 4 + n_vocab, n_vocab rounded up to an even number
=======================  ===================================================================

A record is float32 ``scale``, float32 ``min_log_prob``, n_vocab uint16 codes and perhaps one of
padding; ln p_i = scale · code_i + min_log_prob. Logits more than 16 below the largest were raised
to that before coding, yet ln Σ e^logit was taken before: the file's p do not sum to 1, and an id
with code 0 has any p up to the one that stands there.

**Tokens and BOS.** The file has the text's tokens as the tokenizer gives them: where it adds a BOS,
one BOS in front of the whole text, so it is the first id of the first chunk. When a chunk is run,
llama.cpp puts a BOS in place of the chunk's first token, but it writes the token itself. Which of
the two a model has read, the file does not say: it follows from the tokenizer (``as_read_by`` in
``llamacpp.py``).

Source: ``tools/perplexity/perplexity.cpp`` of llama.cpp at commit 050fc7f.
"""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klcli.sources.kinds import BASE_FILE_MAGIC

HEADER = struct.Struct("<8sIii")
TOKEN = np.dtype("<i4")
CODE = np.dtype("<u2")
SETTING = np.dtype("<f4")
SETTINGS = 4
"""How many codes' room ``scale`` and ``min_log_prob`` take."""
REACH = 16.0
"""Nats: how far below the largest logit the coded range ends."""
TOP_CODE = 65535.0
FloatArray = npt.NDArray[np.float32]
CodeArray = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Header:
    """What a base file says of itself: ``chunks`` chunks of ``context`` ids, ``width`` codes a row.

    Everything about the layout follows from these three.
    """

    context: int
    width: int
    chunks: int

    @property
    def score_from(self) -> int:
        """The first scored row of a chunk."""
        return self.context // 2

    @property
    def scored(self) -> int:
        """How many rows of a chunk are scored: its last row is not, for its target is elsewhere."""
        return self.context - 1 - self.score_from

    @property
    def codes(self) -> int:
        """How many uint16 a record has."""
        return SETTINGS + self.width + self.width % 2

    @property
    def records_at(self) -> int:
        """The byte at which the records begin."""
        return HEADER.size + TOKEN.itemsize * self.context * self.chunks

    @property
    def size(self) -> int:
        """How many bytes the whole file has."""
        return self.records_at + CODE.itemsize * self.codes * self.scored * self.chunks

    def pack(self) -> bytes:
        """The first 20 bytes of the file."""
        return HEADER.pack(BASE_FILE_MAGIC, self.context, self.width, self.chunks)


def decode(records: CodeArray, width: int) -> FloatArray:
    """Records (rows, nv) as ln p, float32 (rows, ``width``): scale · code + min_log_prob.

    The product and the sum are each rounded to float32, as in llama.cpp's own loop.
    """
    settings = records[:, :SETTINGS].copy().view(SETTING).astype(np.float32)
    log_p: FloatArray = records[:, SETTINGS : SETTINGS + width].astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # damaged, or of a model that gave NaN
        log_p *= settings[:, :1]
        log_p += settings[:, 1:]
    return log_p


@torch.inference_mode()
def encode(logits: Tensor) -> CodeArray:
    """Logits (rows, width) as records, uint16 (rows, nv).

    In float32 but for the sum over the vocabulary, as llama.cpp does it, so that the same logits
    give the same bytes. ``exp`` is rounded from float64, which is what the C library's float32
    function gives to the last bit nearly always.
    """
    logits = logits.cpu().float()
    highest = logits.amax(dim=-1, keepdim=True)
    lowest = torch.maximum(logits.amin(dim=-1, keepdim=True), highest - REACH)
    scale = (highest - lowest) / torch.tensor(TOP_CODE)
    min_log_prob = lowest - highest - _log_sum_exp(logits - highest)
    codes = torch.round(torch.reciprocal(scale) * (logits - lowest))
    # A scale so small that its reciprocal overflows gives llama.cpp nothing but zeros.
    codes = torch.where((logits > lowest) & codes.isfinite(), codes, 0.0)
    return _pack(torch.cat([scale, min_log_prob], dim=-1).numpy(), codes.numpy())


def _log_sum_exp(below: Tensor) -> Tensor:
    """The logarithm of Σ e^x, float32 (rows, 1), of logits less their largest."""
    powers = below.double().exp_().float()
    return powers.sum(dim=-1, keepdim=True, dtype=torch.float64).log().float()


def _pack(settings: FloatArray, codes: FloatArray) -> CodeArray:
    rows, width = codes.shape
    records = np.zeros((rows, SETTINGS + width + width % 2), dtype=CODE)
    records[:, :SETTINGS] = settings.astype(SETTING).view(CODE)
    records[:, SETTINGS : SETTINGS + width] = codes
    return records
