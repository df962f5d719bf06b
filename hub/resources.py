"""Questions, passages and indexes that others publish on the hub: what they are called here and what they become.

The files' sizes and hashes are the hub's to say (`hub.download`); this is what is asked for, and where it goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sleuth.errors import ConfigError, did_you_mean

How = Literal["file", "unpack", "join", "folder"]
FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"


@dataclass(frozen=True, slots=True)
class Product:
    """What is made at ``path`` from the ``files`` of a data set on the hub, which are patterns.

    ``how``: the file as it is, unpacked from gzip, several joined in the order of their names, or put into a folder.
    """

    path: str
    repository: str
    files: tuple[str, ...]
    how: How = "file"


@dataclass(frozen=True, slots=True)
class Resource:
    about: str
    products: tuple[Product, ...]


def _questions(name: str, about: str, *splits: str) -> Resource:
    files = [f"{name}/{split}.jsonl" for split in splits]
    return Resource(about, tuple(Product(file, FLASHRAG, (file,)) for file in files))


def _wiki18(about: str, product: str, repository: str, files: str, how: How) -> Resource:
    return Resource(about, (Product(f"wiki18/{product}", f"PeterJinGo/{repository}", (files,), how),))


RESOURCES: dict[str, Resource] = {
    "nq": _questions("nq", "Natural Questions, open", "train", "dev", "test"),
    "triviaqa": _questions("triviaqa", "TriviaQA", "train", "dev", "test"),
    "popqa": _questions("popqa", "PopQA", "test"),
    "hotpotqa": _questions("hotpotqa", "HotpotQA, with its paragraphs", "train", "dev"),
    "2wikimultihopqa": _questions("2wikimultihopqa", "2WikiMultihopQA, with its paragraphs", "train", "dev"),
    "musique": _questions("musique", "MuSiQue, answerable", "train", "dev"),
    "bamboogle": _questions("bamboogle", "Bamboogle", "test"),
    "wiki18": _wiki18(
        "Wikipedia of 2018 in 21,015,324 passages, as Search-R1 publishes it",
        *("wiki-18.jsonl", "wiki-18-corpus", "wiki-18.jsonl.gz", "unpack"),
    ),
    "wiki18-e5": _wiki18("its exact index by E5-base-v2", "e5_Flat.index", "wiki-18-e5-index", "part_*", "join"),
    "wiki18-hnsw": _wiki18(
        "its HNSW index by E5-base-v2", "e5_HNSW64.index", "wiki-18-e5-index-HNSW64", "part_*", "join"
    ),
    "wiki18-bm25": _wiki18("its BM25 index, for kind lucene", "bm25", "wiki-18-bm25-index", "bm25/*", "folder"),
    "wiki-hotpotqa": Resource(
        "a Wikipedia for a laptop: first paragraphs of 5,233,329 articles (2017), which HotpotQA asks about",
        (Product("wiki-hotpotqa/corpus", "BeIR/hotpotqa", ("corpus/*", "corpus.jsonl.gz"), "folder"),),
    ),
}


def products_named(name: str) -> tuple[Product, ...]:
    """The products of the resource ``name``, or the one at that path. Raises ConfigError."""
    if name in RESOURCES:
        return RESOURCES[name].products
    found = tuple(product for product in all_products() if product.path == name)
    if not found:
        paths = [product.path for product in all_products()]
        raise ConfigError(f"nothing to download is called '{name}'", did_you_mean(name, [*RESOURCES, *paths]))
    return found


def all_products() -> Iterator[Product]:
    return (product for resource in RESOURCES.values() for product in resource.products)


def product_of(path: str | Path) -> tuple[Product, Path] | None:
    """The product that belongs at ``path``, told by the end of the path, and the folder that it is under."""
    parts = Path(path).parts
    for product in all_products():
        own = Path(product.path).parts
        if parts[-len(own) :] == own:
            return product, Path(*parts[: -len(own)])
    return None
