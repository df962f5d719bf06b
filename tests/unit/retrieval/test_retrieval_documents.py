"""A whole document from one of its passages, through every wrapper; a service elsewhere offers none."""

from retrieval.cache import CachedRetriever
from retrieval.combine.hybrid import HybridRetriever
from retrieval.combine.rerank import RerankRetriever
from retrieval.documents import LONGEST, document_around, documents_of
from retrieval.resilient import ResilientRetriever
from retrieval.store import PassageStore, StoreWriter
from retrieval.windows import cut
from retrieval.windows_config import WindowSettings
from sleuth.types import Passage

TITLED = [Passage(f"p{n}", title, f"text {n}") for n, title in enumerate(["A", "B", "B", "B", "C", "B"])]
BARE = [Passage(name, "", name) for name in ("d1#0", "d1#1", "d2#0", "d3", "d4")]


def store_of(folder, passages):
    with StoreWriter(folder) as writer:
        writer.add(passages)
    return PassageStore(folder)


def ids(store, passage):
    return [found.id for found in store.document(passage)]


def test_neighbours_of_one_title_are_a_document(tmp_path):
    store = store_of(tmp_path, TITLED)
    assert ids(store, "p2") == ids(store, "p1") == ids(store, "p3") == ["p1", "p2", "p3"]
    assert (ids(store, "p0"), ids(store, "p4"), ids(store, "p5"), ids(store, "p9")) == (["p0"], ["p4"], ["p5"], [])
    assert store.document("p2") == TITLED[1:4]


def test_without_titles_the_ids_tell(tmp_path):
    store = store_of(tmp_path, BARE)
    assert (ids(store, "d1#1"), ids(store, "d2#0"), ids(store, "d4")) == (["d1#0", "d1#1"], ["d2#0"], ["d4"])


def test_windows_are_put_together_again(tmp_path):
    texts = [f"Sentence {n}, the same words. Number {n} is one of them." for n in (1, 2, 3)]
    passages = [Passage("a", "", " ".join(texts)), Passage("b", "", texts[0]), Passage("c", "", "The last.")]
    for words in (WindowSettings(words=7, stride=3), WindowSettings(words=7), WindowSettings(sentences=2, stride=1)):
        store = store_of(tmp_path / str(hash(words)), [window for p in passages for window in cut(p, words)])
        assert store.document("a::w1") == passages[:1]
        assert store.document("c") == passages[2:]


def test_a_corpus_under_one_title_is_not_read_whole():
    found = document_around(lambda n: Passage(str(n), "T", ""), 5000, 10_000)
    assert (found[0].id, found[-1].id) == (str(5000 - LONGEST), str(5000 + LONGEST))


class Local:
    fingerprint = "local"

    def __init__(self, documents=None):
        if documents is not None:
            self.documents = documents

    def search(self, queries, k):
        return [[] for _ in queries]


def test_every_wrapper_passes_documents_on(tmp_path):
    store, remote = store_of(tmp_path, TITLED), Local()
    local = Local(store)
    wrapped = CachedRetriever(ResilientRetriever(RerankRetriever(HybridRetriever([remote, local]), object())))
    assert documents_of(wrapped) is store
    assert documents_of(CachedRetriever(ResilientRetriever(remote))) is None
    assert documents_of(None) is None
