"""AntiBERTy, a small BERT trained on antibodies: real weights that a package registry has.

``pip install --no-deps antiberty==0.1.3`` (MIT license) brings the weights and the vocabulary. Its
code is not run. This module has another name than the package, or it would be found in its place.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

ANTIBODIES = {
    "trastuzumab-heavy": (
        "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAED"
        "TAVYYCSRWGGDGFYAMDYWGQGTLVTVSS"
    ),
    "trastuzumab-light": (
        "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQ"
        "HYTTPPTFGQGTKVEIK"
    ),
    "adalimumab-heavy": (
        "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAED"
        "TAVYYCAKVSYLSTASSLDYWGQGTLVTVSS"
    ),
    "adalimumab-light": (
        "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQR"
        "YNRAPYTFGQGTKVEIK"
    ),
}
"""Variable domains of two antibodies that are medicines."""


def antiberty_folder(target: Path) -> Path | None:
    """Write AntiBERTy as a folder that transformers loads; None where it is not installed.

    A residue is a token, with or without spaces between residues (antiberty itself puts them
    there); the heads for species, chain and grafts are left out.
    """
    spec = importlib.util.find_spec("antiberty")
    if spec is None or not spec.submodule_search_locations:
        return None
    trained = Path(spec.submodule_search_locations[0]) / "trained_models"
    masked_model(trained / "AntiBERTy_md_smooth").save_pretrained(target)
    residue_tokenizer(trained / "vocab.txt").save_pretrained(target)
    return target


def masked_model(checkpoint: Path) -> Any:
    """The BERT of a checkpoint with its masked LM's head alone."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    shape = {name: config[name] for name in config if not name.startswith(("_", "transformers"))}
    model = transformers.BertForMaskedLM(transformers.BertConfig(**shape))
    path = checkpoint / "pytorch_model.bin"
    weights: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    wanted = model.state_dict()
    model.load_state_dict({name: weights[name] for name in wanted})
    return model.eval()


def residue_tokenizer(vocab: Path) -> Any:
    """[CLS], a token for each letter that is not white space, [SEP]."""
    tokens = vocab.read_text(encoding="utf-8").split()
    numbers = {token: number for number, token in enumerate(tokens)}
    inner = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, numbers[token]) for token in ("[CLS]", "[SEP]")],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=512,
    )
