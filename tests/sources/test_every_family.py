"""Every family that transformers runs gives its own numbers; what does not is known, and why."""

import os
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.sources.every_family import TROUBLE, Family, check_family, families, page

QUICK = (Family("causal", "gpt2"), Family("masked", "roberta"), Family("image-text", "internvl"))
PAGE = ROOT / "docs" / "families.md"


@pytest.mark.filterwarnings("ignore")  # of families, which are not ours to mend
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            family,
            id=f"{family.kind}-{family.name}",
            marks=() if family in QUICK else pytest.mark.slow,
        )
        for family in families()
    ],
)
def test_a_family_gives_its_own_numbers_or_the_error_that_is_known(
    family: Family, tmp_path: Path, fixtures: Path
) -> None:
    tokenizer = fixtures / "models" / "masked-reference"
    if family in TROUBLE:
        with pytest.raises(Exception, match=TROUBLE[family].error):
            check_family(family, tmp_path, tokenizer)
    else:
        check_family(family, tmp_path, tokenizer)


def test_the_page_of_families_says_what_the_table_says() -> None:
    if os.environ.get("KLCLI_ACCEPT"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), "KLCLI_ACCEPT=1 writes it anew"


def test_only_families_that_exist_are_in_trouble() -> None:
    assert set(TROUBLE) <= set(families())
