"""Encoders that read pages: alone and in batches, saved and loaded, trained, indexed and searched."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image as Pillow
from sentence_transformers import MultiVectorEncoder, SentenceTransformer

from hub.pictures import decode
from retrieval.corpus import BadRow, read_rows
from retrieval.encoders.config import preset
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.indexes import build_encoded
from retrieval.encoders.inputs import Seen
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.encoders.page_config import PageScratchSettings
from retrieval.encoders.page_trunk import PageTrunk
from retrieval.encoders.scratch import make_backbone
from retrieval.multivector.explain import explain
from retrieval.open import open_retriever
from retrieval.pages.config import PageSettings
from retrieval.pages.heat import heat_png
from retrieval.pages.letters import LETTERS, Lettering, LetterPlaces, Line
from retrieval.pages.write import write_pages
from retrieval.training.config import TrainingSettings
from retrieval.training.objective import InBatch
from retrieval.training.reading import letter_grid
from retrieval.training.row import TrainingRow
from retrieval.training.start import Material, start
from retrieval.training.terms import terms_of
from sleuth.errors import ArtifactError, ConfigError, DataError
from sleuth.types import Image, Passage

NAMES = ("Oslo", "Bergen", "Tromso", "Narvik", "Molde", "Voss")
SMALL = {"hidden_size": 32, "layers": 1, "heads": 2, "spelling": 1, "letters": 64}
KINDS = {"dense": ("plain", {}), "multivector": ("colbert", {"dimensions": 16, "expand_to": 0, "query_prompt": ""})}


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six towns, drawn one letter a patch."""
    folder = tmp_path_factory.mktemp("pages")
    rows = [{"_id": name.lower(), "title": name, "text": f"{name} is a town."} for name in NAMES]
    (folder / "towns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_pages(
        folder / "towns.jsonl", folder / "pages", PageSettings(width=96, height=64, size=13, cell=(8, 16), margin=0)
    )
    return folder / "pages"


@pytest.fixture(scope="session")
def passages(pages: Path) -> list[Passage]:
    return [row.passage for row in read_rows(pages) if not isinstance(row, BadRow)]


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory, passages: Sequence[Passage]) -> Path:
    folder = tmp_path_factory.mktemp("trunk") / "trunk"
    make_backbone(folder, [p.text for p in passages], PageScratchSettings(family="pages", **SMALL))
    return folder


def made(trunk: Path, kind: str, reads: str = "image") -> Encoder:
    name, settings = KINDS[kind]
    return new_encoder(preset(name, str(trunk), **{"passage_prompt": "", **settings, "reads": reads}))


def taller(image: Image) -> Image:
    """The same page with empty lines below it and beside it."""
    page = decode(image)
    wide = Pillow.new("RGB", (page.width + 24, page.height + 32), "white")
    wide.paste(page)
    file = io.BytesIO()
    wide.save(file, "PNG")
    return Image("taller.png", "0" * 64, file.getvalue())


@pytest.mark.parametrize("reads", ["image", "both"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_pages_in_a_batch_are_as_alone(trunk: Path, passages: Sequence[Passage], kind: str, reads: str) -> None:
    encoder = made(trunk, kind, reads)
    assert passages[0].image is not None
    odd = [replace(passages[0], image=taller(passages[0].image)), Passage("t", "", "Only text here")]
    together = encoder.encode_passages([*passages, *odd], batch_size=3)
    for place, passage in enumerate([*passages, *odd]):
        alone = encoder.encode_passages([passage])
        if together.mask is None:
            assert torch.allclose(together.values[place], alone.values[0], atol=1e-5)
        else:
            assert alone.mask is not None
            one, other = together.values[place][together.mask[place]], alone.values[0][alone.mask[0]]
            assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_saved_encoder_gives_the_same_here_and_in_the_library(
    trunk: Path, passages: Sequence[Passage], tmp_path: Path, kind: str
) -> None:
    encoder = made(trunk, kind)
    encoder.save(tmp_path / "e")
    again = load_encoder(tmp_path / "e")
    assert again.fingerprint == encoder.fingerprint and again.settings.reads == "image"
    before, after = encoder.encode_passages(passages), again.encode_passages(passages)
    assert torch.equal(before.values, after.values)
    plain = (SentenceTransformer if kind == "dense" else MultiVectorEncoder)(str(tmp_path / "e"))
    pictures = [decode(p.image) for p in passages if p.image is not None]
    theirs = plain.encode_document(pictures)
    for place, own in enumerate(after.values):
        wanted = own if after.mask is None else own[after.mask[place]]
        assert np.allclose(np.asarray(theirs[place]), wanted.numpy(), atol=1e-5)
    asked = "What is Oslo?"
    ours = again.encode_texts([asked], "query")
    wanted = ours.values[0] if ours.mask is None else ours.values[0][ours.mask[0]]
    assert np.allclose(np.asarray(plain.encode_query([asked])[0]), wanted.numpy(), atol=1e-5)


def test_every_letter_of_an_aligned_page_is_told_its_patch(
    pages: Path, trunk: Path, passages: Sequence[Passage]
) -> None:
    encoder = made(trunk, "dense")
    processor = next(iter(encoder.tower("passage").children())).processor
    image = passages[0].image
    assert image is not None
    grid = letter_grid(LetterPlaces(pages / LETTERS).of(image.sha256), processor, (4, 12))
    shown = ["".join(processor.tokenizer.convert_ids_to_tokens(row)).rstrip() for row in grid.tolist()]
    assert shown == ["Oslo", "Oslo is a", "town.", ""]
    features = encoder.features([Seen(image)], "passage")
    inked = features["attention_mask"][0].unflatten(0, (4, 12)).bool()
    assert torch.equal(inked, grid != processor.tokenizer.convert_tokens_to_ids(" "))


def test_letters_beside_the_page_are_of_no_patch(trunk: Path) -> None:
    processor = next(iter(made(trunk, "dense").tower("passage").children())).processor
    beside = [Line("Oslo", (-5, 4, 300, 12), -3), Line("Os", (-5, 200), 8)]
    grid = letter_grid(Lettering((96, 64), tuple(beside)), processor, (4, 12))
    assert (grid == processor.tokenizer.convert_tokens_to_ids(" ")).all()


def test_a_page_learns_to_be_read_and_found(pages: Path, trunk: Path, passages: Sequence[Passage]) -> None:
    encoder = made(trunk, "dense")
    settings = TrainingSettings.of(batch_size=6, hard_negatives=0, reading={"letters": str(pages / LETTERS)})
    rows = [TrainingRow(p.id, f"Where is {p.title}?", (p,)) for p in passages]
    objective = InBatch(rows, settings, 0, terms_of(settings, encoder))
    before = {name: weight.detach().clone() for name, weight in encoder.model.named_parameters()}
    optimizer = torch.optim.AdamW(encoder.model.parameters(), lr=3e-3)
    figures = []
    for step in range(25):
        optimizer.zero_grad()
        figures.append(objective.backward(encoder, step))
        optimizer.step()
    assert figures[-1]["reading"] < 0.5 * figures[0]["reading"] and figures[-1]["loss"] < figures[0]["loss"]
    still = {name for name, weight in encoder.model.named_parameters() if torch.equal(before[name], weight)}
    assert not still


def test_small_chunks_give_the_gradients_of_one_pass(pages: Path, trunk: Path, passages: Sequence[Passage]) -> None:
    rows = [TrainingRow(p.id, f"Where is {p.title}?", (p,)) for p in passages]
    found = []
    for chunk in (None, 2):
        encoder = made(trunk, "multivector")
        settings = TrainingSettings.of(
            batch_size=6, hard_negatives=0, micro_batch=chunk, reading={"letters": str(pages / LETTERS)}
        )
        InBatch(rows, settings, 0, terms_of(settings, encoder)).backward(encoder, 0)
        found.append({name: weight.grad for name, weight in encoder.model.named_parameters()})
    for name, one in found[0].items():
        assert one is not None and torch.allclose(one, found[1][name], atol=1e-5), name


@pytest.mark.parametrize("kind", list(KINDS))
def test_pages_are_indexed_and_searched(trunk: Path, pages: Path, tmp_path: Path, kind: str) -> None:
    made(trunk, kind).save(tmp_path / "e")
    encoder = load_encoder(tmp_path / "e")
    from retrieval.dense.retriever import DENSE_INDEX
    from retrieval.multivector.retriever import MULTIVECTOR_INDEX

    index_kind = DENSE_INDEX if kind == "dense" else MULTIVECTOR_INDEX
    build_encoded(index_kind, pages, tmp_path / "i", encoder, dict(index_kind.usual), batch_size=2)
    retriever = open_retriever(tmp_path / "i")
    (hits,) = retriever.search(["Oslo"], 6)
    query, stored = encoder.encode_texts(["Oslo"], "query"), encoder.encode_passages([hit.passage for hit in hits])
    wanted = encoder.family.scores(query, stored)[0]
    assert torch.allclose(torch.tensor([hit.score for hit in hits]), wanted, atol=1e-4)
    assert all(hit.passage.image is not None for hit in hits)


def test_maxsim_over_patches_is_the_plain_sum(trunk: Path, passages: Sequence[Passage]) -> None:
    encoder = made(trunk, "multivector")
    query, found = encoder.encode_texts(["Oslo is"], "query"), encoder.encode_passages(passages)
    scores = encoder.family.scores(query, found)
    assert found.mask is not None and query.mask is not None
    for place in range(len(passages)):
        best = [
            max(float(letter @ patch) for patch in found.values[place][found.mask[place]])
            for letter in query.values[0][query.mask[0]]
        ]
        assert sum(best) == pytest.approx(float(scores[0, place]), abs=1e-4)


def test_what_cannot_be_read_is_one_clear_line(trunk: Path, tmp_path: Path, passages: Sequence[Passage]) -> None:
    encoder = made(trunk, "dense")
    torn = Image("torn.png", "0" * 64, b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"the picture torn.png cannot be read"):
        encoder.encode_passages([Passage("1", "", "", torn)])
    with pytest.raises(ArtifactError, match="reads no pictures"):
        from retrieval.encoders.config import ScratchSettings

        make_backbone(tmp_path / "bert", ["a town"], ScratchSettings(hidden_size=8, heads=1, layers=1))
        new_encoder(preset("plain", str(tmp_path / "bert"), reads="image"))
    words = TrainingSettings.of(reading={"letters": str(tmp_path / "letters.jsonl")})
    with pytest.raises(DataError, match="cannot read the places of letters"):
        terms_of(words, encoder)


def test_reading_from_letters_of_other_pages_is_refused_and_of_some_is_said(
    pages: Path, trunk: Path, passages: Sequence[Passage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (pages / LETTERS).read_text().splitlines(keepends=True)

    def begin(letters: str, encoder: Encoder) -> None:
        (tmp_path / "letters.jsonl").write_text(letters)
        settings = TrainingSettings.of(batch_size=6, hard_negatives=0, reading={"letters": tmp_path / "letters.jsonl"})
        rows = [TrainingRow(p.id, f"Where is {p.title}?", (p,)) for p in passages]
        start(settings, Material(encoder, rows, [], 0, lambda _: nullcontext(lambda *_: None)))

    other = "".join(line.replace('"sha256":"', '"sha256":"0') for line in lines)
    with pytest.raises(ConfigError, match=r"letters\.jsonl has the letters of none of the 6 pages in the rows"):
        begin(other, made(trunk, "dense"))
    with pytest.raises(ConfigError, match=r"the encoder reads none in the rows .*reads to image"):
        begin("".join(lines), new_encoder(preset("plain", str(trunk), reads="text")))
    begin("".join(lines), made(trunk, "dense"))
    assert "training.reading" not in caplog.text
    begin("".join(lines[:2]), made(trunk, "dense"))
    assert "has the letters of 2 of 6 pages in the rows" in caplog.text


def test_reading_is_for_a_page_trunk_alone(pages: Path, tmp_path: Path) -> None:
    from retrieval.encoders.config import ScratchSettings

    make_backbone(tmp_path / "bert", ["a town"], ScratchSettings(hidden_size=8, heads=1, layers=1))
    settings = TrainingSettings.of(reading={"letters": str(pages / LETTERS)})
    with pytest.raises(ConfigError, match="page trunk from scratch"):
        terms_of(settings, new_encoder(preset("plain", str(tmp_path / "bert"))))


def test_a_text_that_names_a_file_is_not_opened(trunk: Path, pages: Path) -> None:
    encoder = made(trunk, "dense")
    name = str(next((pages / "images").rglob("*.png")))
    assert "pixel_values" not in encoder.features([name], "passage")


def test_a_blank_page_has_finite_states(trunk: Path) -> None:
    file = io.BytesIO()
    Pillow.new("L", (64, 32), 255).save(file, "PNG")
    blank = Passage("1", "", "", Image("blank.png", "0" * 64, file.getvalue()))
    assert made(trunk, "dense").encode_passages([blank]).values.isfinite().all()


def test_the_trunk_is_one_of_transformers(trunk: Path) -> None:
    assert isinstance(PageTrunk.from_pretrained(trunk), PageTrunk)


def test_the_parts_of_a_score_are_on_the_inked_patches_of_the_page(trunk: Path, passages: Sequence[Passage]) -> None:
    encoder = made(trunk, "multivector")
    image = passages[0].image
    assert image is not None
    (reason,) = explain(encoder, "Oslo", passages[:1])
    assert {part.query_term for part in reason.parts} == set("Oslo")
    dark = np.asarray(decode(image).convert("L")) < 128
    for part in reason.parts:
        assert part.box is not None
        left, top, right, bottom = part.box
        assert (right - left, bottom - top) == (8, 16) and dark[top:bottom, left:right].any()
    red = np.asarray(Pillow.open(io.BytesIO(heat_png(image, reason))).convert("RGB")).astype(int)
    scale = red.shape[1] // 96
    left, top, right, bottom = reason.parts[0].box or (0, 0, 0, 0)
    assert (red[top * scale, left * scale] - red[-1, -1])[1] < -20  # less green than paper: red lies on it


def test_a_picture_finds_its_own_page_and_a_text_encoder_says_it_reads_none(
    trunk: Path, pages: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made(trunk, "dense").save(tmp_path / "e")
    index = str(tmp_path / "i")
    run("index", str(pages), "--out", index, "--kind", "dense", "--encoder", str(tmp_path / "e"))
    files = {row["_id"]: pages / row["image"] for row in map(json.loads, (pages / "corpus.jsonl").open())}
    capfd.readouterr()
    run("search", index, "--image", str(files["oslo"]), "--image", str(files["voss"]), "-k", "2", "--json")
    found = [json.loads(line)["hits"][0]["id"] for line in capfd.readouterr().out.splitlines()]
    assert found == ["oslo", "voss"]
    run("search", index, "Oslo", "--image", str(files["voss"]), "-k", "1", "--json")
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["query"] for row in rows] == ["Oslo", str(files["voss"])] and rows[1]["hits"][0]["id"] == "voss"
    assert run("search", index, "--image", str(tmp_path / "none.png")) == 2
    assert "cannot read the picture" in capfd.readouterr().err
    assert run("search", index) == 2 and "no query was given" in capfd.readouterr().err
    text = "{backbone: %s, reads: text}" % (tmp_path / "e")
    assert run("index", str(pages), "--out", index, "--kind", "dense", "--encoder", text, "--overwrite") == 0
    assert run("search", index, "--image", str(files["oslo"])) == 2
    assert "reads no pictures of queries" in capfd.readouterr().err
