"""``python -m experiments.common.pairs``: sentences and their translations from message catalogues."""

import pytest

from experiments.common.pairs import main

pytest.importorskip("babel", reason="catalogues are read by Babel (extra tasks)")
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo

MESSAGES = {
    "Save the ~document now": "Enregistrer le ~document maintenant",
    "Enter the width of the list. ": "Entrez la largeur de la liste. ",
    "Two words": "Deux mots",
    "~Costs of R&D in my_file": "_Coûts de R&D dans my_file",
    "not translated at all": "",
    "the same in French": "the same in French",
    "Delete $(ARG1) from disk": "Supprimer $(ARG1) du disque",
    "first line\nsecond line": "premier ligne\nseconde ligne",
    ("one file was saved", "many files were saved"): ("un fichier enregistré", "des fichiers enregistrés"),
}


@pytest.fixture
def french(tmp_path):
    """A folder with two catalogues that share a message."""
    for name, messages in (
        ("one", MESSAGES),
        ("two", {**dict([*MESSAGES.items()][:1]), "a third message here": "un troisième ici"}),
    ):
        catalogue = Catalog(locale="fr")
        for source, target in messages.items():
            catalogue.add(source, target)
        path = tmp_path / "fr" / name / f"{name}.mo"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            write_mo(file, catalogue)
    return tmp_path / "fr"


def test_sentences_of_all_catalogues_are_written_once(french, tmp_path, capsys):
    assert main([str(french), "--out", str(tmp_path / "pairs.txt")]) == 0
    assert (tmp_path / "pairs.txt").read_text(encoding="utf-8").splitlines() == [
        "Costs of R&D in my_file\tCoûts de R&D dans my_file",
        "Enter the width of the list.\tEntrez la largeur de la liste.",
        "Save the document now\tEnregistrer le document maintenant",
        "a third message here\tun troisième ici",
    ]
    assert "4 pairs of 2 catalogues" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"text", b"\xde\x12\x04\x95" + b"\xff" * 40])
def test_damaged_catalogues_are_named_and_nothing_is_written(french, tmp_path, capsys, content):
    (french / "zero.mo").write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        main([str(french), "--out", str(tmp_path / "pairs.txt")])
    assert "FOLDER must hold catalogues of gettext, got zero.mo" in capsys.readouterr().err
    assert not (tmp_path / "pairs.txt").exists()


def test_what_is_no_folder_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "pairs.txt")])
    assert "FOLDER must be a folder, got" in capsys.readouterr().err


def test_folders_without_catalogues_are_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--out", str(tmp_path / "pairs.txt")])
    assert "got 0 files .mo" in capsys.readouterr().err


def test_a_file_that_exists_is_not_replaced(french, capsys):
    (catalogue, *_) = french.rglob("*.mo")
    before = catalogue.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main([str(french), "--out", str(catalogue)])
    assert "out must be a new file" in capsys.readouterr().err
    assert catalogue.read_bytes() == before
