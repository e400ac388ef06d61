"""docs/card-profile.md says what the code does."""

from __future__ import annotations

import re

import pytest

from tests.support import card_example
from vmtoken.cards.codes import AID, DataObject, Export, Features, Instruction, KeyAlgorithm

DOCUMENT = card_example.DOCUMENT.read_text()


def test_example_is_up_to_date() -> None:
    shown = DOCUMENT.split(card_example.BEGIN)[1].split(card_example.END)[0].strip()
    assert shown == card_example.example().strip(), "run: python -m tests.support.card_example"


def test_every_command_is_in_the_table() -> None:
    described = {int(ins, 16) for ins in re.findall(r"^\| [^|]+ \| (?:A0|00) ([0-9A-F]{2}) ", DOCUMENT, re.M)}
    assert set(Instruction) - {Instruction.FETCH, Instruction.GET_RESPONSE} <= described | {0xC0}
    assert described <= set(Instruction) | {0xA4}


@pytest.mark.parametrize("export", Export)
def test_every_export_is_in_the_table(export: Export) -> None:
    assert re.search(rf"^\| {export:02X} \| ", DOCUMENT, re.M)


@pytest.mark.parametrize("thing", [*KeyAlgorithm, *DataObject], ids=lambda thing: thing.name)
def test_key_algorithms_and_data_objects_have_their_numbers(thing: KeyAlgorithm | DataObject) -> None:
    name = thing.name.replace("ECDSA_P384", "P-384").replace("ECDSA_P", "ECDSA P-").replace("RSA_", "RSA-")
    name = name.replace("ML_DSA_", "ML-DSA-").replace("ED25519", "Ed25519")
    number = f"{thing:02X}"
    found = f"{number} {name}" in DOCUMENT or re.search(rf"^\| {number} \|", DOCUMENT, re.M)
    assert found


def test_aid_and_features_are_those_of_the_code() -> None:
    assert AID.hex(" ").upper() in DOCUMENT
    for feature in Features:
        assert f"{feature:04X}" in DOCUMENT
