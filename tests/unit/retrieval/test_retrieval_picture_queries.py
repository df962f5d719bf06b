"""Pictures as queries: through the service and its client, under limits, and what encoders of one kind alone say."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from echo import Echo, ask, metrics, wait_for
from PIL import Image as Pillow

from hub.pictures import decode
from retrieval.cache import CachedRetriever
from retrieval.combine.hybrid import HybridRetriever
from retrieval.dense.retriever import DenseIndex
from retrieval.dense.search import FlatSearch
from retrieval.dense.vectors import StoredVectors
from retrieval.encoders.dense import DENSE
from retrieval.encoders.family import Encoded
from retrieval.encoders.inputs import Seen
from retrieval.encoders.modalities import Modalities
from retrieval.encoders.multivector import MULTIVECTOR
from retrieval.encoders.retriever import EncoderRetriever
from retrieval.images import image_of_file
from retrieval.multivector.retriever import MultiVectorIndex
from retrieval.multivector.search import ExactSearch
from retrieval.multivector.tokens import StoredTokens
from retrieval.pages import pictures
from retrieval.resilient import ResilientRetriever
from retrieval.service.config import ServiceLimits
from retrieval.service.remote import RemoteRetriever
from sleuth.errors import ConfigError, DataError
from sleuth.types import Hit, Image, Passage

Serving = Callable[..., contextlib.AbstractContextManager[str]]
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def picture(colour: str, kind: str = "PNG", size: tuple[int, int] = (4, 3), **how: Any) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", size, colour).save(file, kind, **how)
    return file.getvalue()


def nothing_wide() -> bytes:
    """A PNG of 0 x 0 pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


class Colours:
    """An encoder that reads pictures only, by their mean colour."""

    family, source, dimension, device = DENSE, "colours", 3, torch.device("cpu")
    modalities = Modalities(query=frozenset({"image"}), passage=frozenset({"image"}))
    settings = object()

    def encode_inputs(self, inputs: Sequence[Seen], *_: Any) -> Encoded:
        means = [np.asarray(decode(given.image)).mean((0, 1)) / 255 for given in inputs]
        return Encoded(torch.tensor(np.array(means), dtype=torch.float32))


@pytest.fixture
def colours() -> EncoderRetriever:
    pages = [Passage(name, "", "", Image(f"{name}.png", "", picture(name))) for name in COLOURS]
    vectors = np.array([COLOURS[name] for name in COLOURS], np.float32) / 255
    return EncoderRetriever(Colours(), DenseIndex(FlatSearch(StoredVectors(vectors)), "i"), pages, "i", "f")  # type: ignore[arg-type]


def sent(data: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(data).decode()}


def test_pictures_ask_a_service_and_its_client_sends_them(colours: EncoderRetriever, serving: Serving) -> None:
    limits = ServiceLimits(max_query_images=2)
    with serving(CachedRetriever(ResilientRetriever(colours)), limits) as url:
        answer = ask(url, queries=[sent(picture("green")), sent(picture("blue", "JPEG"))], topk=1, return_images=True)
        first, second = (hits[0] for hits in answer.json()["result"])
        assert (first["id"], second["id"]) == ("green", "blue")
        assert base64.b64decode(first["image"]["data"]) == picture("green")
        remote = CachedRetriever(ResilientRetriever(RemoteRetriever(url)))
        images = [Image("a", str(number), picture(name)) for number, name in enumerate([*COLOURS] * 2)]
        found = remote.search_images(images, 2)  # three requests
        assert [hits[0].passage.id for hits in found] == [*COLOURS] * 2 and all(len(hits) == 2 for hits in found)
        assert "sleuth_queries_total 8.0" in metrics(url)
        with pytest.raises(ConfigError, match="colours reads image of queries, but queries are text"):
            remote.search(["green"], 1)
        assert ask(url, queries=["green"]).status_code == 422
        schema = httpx.get(f"{url}/openapi.json").text
        assert "max_image_pixels" in schema and httpx.get(f"{url}/health").json()["max_query_images"] == 2


class Both(Echo):
    def search_images(self, images: Sequence[Image], k: int) -> list[list[Hit]]:
        self.calls.append(([image.sha256[:4] for image in images], k))
        return [[Hit(Passage(str(Pillow.open(io.BytesIO(image.content)).size), "", ""), 1.0, 1)] for image in images]


def test_texts_and_pictures_of_a_request_keep_their_order_and_equal_ones_are_asked_once(serving: Serving) -> None:
    echo = Both()
    one, two = sent(picture("red", size=(5, 6))), sent(picture("red", size=(7, 8)))
    with serving(echo) as url:
        result = ask(url, queries=[one, "x", two, one, ""], topk=1).json()["result"]
    assert [hits[0]["id"] for hits in result[:4]] == ["(5, 6)", "x-1", "(7, 8)", "(5, 6)"] and result[4] == []
    assert [len(queries) for queries, _ in echo.calls] == [2, 2]


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ({"image": 3}, 'queries[1] is neither a string nor {"image": base64}'),
        ({"image": "§§§§"}, "queries[1] is not base64"),
        (sent(b"no picture"), "queries[1] cannot be read: it is no picture"),
        (sent(nothing_wide()), "queries[1] cannot be read: it is no picture"),
        (sent(picture("red", "JPEG", (40, 30))[:-200]), "queries[1] cannot be read"),
        (sent(picture("red", size=(200, 51))), "has 200 x 51 pixels (at most 10,000 are read)"),
        (sent(picture("red") + b"0" * 3000), "queries[1] is larger than 2000 bytes"),
        (sent(picture("red", "GIF", save_all=True, append_images=[Pillow.new("RGB", (4, 3), "blue")])), "2 frames"),
    ],
)
def test_a_picture_beyond_the_limits_is_refused_in_one_line(query: Any, detail: str, serving: Serving) -> None:
    with serving(Both(), ServiceLimits(max_image_bytes=2000, max_image_pixels=10_000)) as url:
        answer = ask(url, queries=["x", query])
        assert answer.status_code == 422 and detail in answer.json()["detail"]
        assert "\n" not in answer.json()["detail"]
        assert "3 pictures among the queries are more than" not in ask(url, queries=[sent(picture("red"))] * 3).text


class Inked(Colours):
    """A vector a dark pixel, so that a blank picture has none."""

    family = MULTIVECTOR

    def encode_inputs(self, inputs: Sequence[Seen], *_: Any) -> Encoded:
        pages = [torch.tensor(np.asarray(decode(given.image)), dtype=torch.float32).flatten(0, 1) for given in inputs]
        pixels = torch.nn.utils.rnn.pad_sequence(pages, batch_first=True, padding_value=255.0)
        return Encoded((255 - pixels) / 255, pixels.mean(2) < 250)


def test_a_blank_picture_finds_nothing_and_the_service_goes_on(serving: Serving) -> None:
    pages = [Passage(name, "", "", Image(f"{name}.png", "", picture(name))) for name in COLOURS]
    vectors = 1 - np.array([COLOURS[name] for name in COLOURS], np.float32) / 255
    tokens = ExactSearch(StoredTokens(vectors, np.arange(len(pages) + 1)))
    inked = EncoderRetriever(Inked(), MultiVectorIndex(tokens, "i"), pages, "i", "f")  # type: ignore[arg-type]
    with serving(ResilientRetriever(inked, retries=0, breaker_failures=1)) as url:
        for _ in range(2):
            answer = ask(url, queries=[sent(picture("white")), sent(picture("green"))], topk=1)
            assert answer.status_code == 200
            blank, green = answer.json()["result"]
            assert blank == [] and green[0]["id"] == "green"
        assert ask(url, queries=[sent(picture("white"))], topk=1).json() == {"result": [[]]}


def test_no_service_takes_pictures_that_nothing_decodes() -> None:
    with pytest.raises(ValueError, match="max_image_pixels"):
        ServiceLimits(max_image_pixels=50_000_000)


def test_a_request_has_so_many_pictures_at_most(serving: Serving) -> None:
    with serving(Both(), ServiceLimits(max_query_images=2)) as url:
        answer = ask(url, queries=[sent(picture("red"))] * 3)
    assert answer.status_code == 422 and "3 pictures among the queries are more than 2" in answer.text


@pytest.fixture
def slow_decoder(monkeypatch: pytest.MonkeyPatch) -> SlowDecoder:
    decoder = SlowDecoder()
    monkeypatch.setattr(pictures, "read_picture", decoder)
    return decoder


class SlowDecoder:
    """Decodes once its gate is open; counts how often it was called and how many calls ran at a time."""

    def __init__(self) -> None:
        self.gate, self.lock = threading.Event(), threading.Lock()
        self.calls = self.running = self.most = 0
        self.decode = pictures.read_picture

    def __call__(self, *given: Any) -> pictures.Picture:
        with self.lock:
            self.calls += 1
            self.running += 1
            self.most = max(self.most, self.running)
        assert self.gate.wait(60)
        with self.lock:
            self.running -= 1
        return self.decode(*given)


def test_small_requests_with_large_pictures_hold_nobody_up(serving: Serving, slow_decoder: SlowDecoder) -> None:
    """Few bytes may be many pixels, and JSON may write the key of a picture in other letters."""
    data = base64.b64encode(picture("red")).decode()
    bodies = [f'{{"queries": [{{"{key}": "{data}"}}], "topk": 1}}' for key in ("image", "\\u0069mage") * 4]
    with serving(Both()) as url, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(httpx.post, f"{url}/retrieve", content=body, timeout=60) for body in bodies]
        wait_for(lambda: slow_decoder.running == 2)
        assert httpx.get(f"{url}/health", timeout=20).status_code == 200
        assert ask(url, queries=["in words"], topk=1).status_code == 200
        slow_decoder.gate.set()
        assert {answer.result().status_code for answer in waiting} == {200}
    assert (slow_decoder.calls, slow_decoder.most) == (8, 2)


def test_the_time_of_a_request_counts_while_its_pictures_are_read(serving: Serving, slow_decoder: SlowDecoder) -> None:
    with serving(Both(), ServiceLimits(timeout_s=0.3)) as url:
        answer = ask(url, queries=[sent(picture("red"))])
        slow_decoder.gate.set()
    assert answer.status_code == 504 and "not answered within 0.3 s" in answer.text


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_retriever_of_text_is_sent_pictures_that_nobody_decodes(
    wrapped: bool, serving: Serving, slow_decoder: SlowDecoder
) -> None:
    slow_decoder.gate.set()
    both = HybridRetriever([Both(), Echo()])
    with serving(CachedRetriever(ResilientRetriever(both)) if wrapped else Echo()) as url:
        answer = ask(url, queries=["words", sent(picture("red"))])
    assert answer.status_code == 422 and "reads no pictures of queries" in answer.text and slow_decoder.calls == 0


def test_a_retriever_of_text_refuses_pictures_in_one_line(serving: Serving) -> None:
    with serving(Echo()) as url:
        answer = ask(url, queries=[sent(picture("red"))])
        assert answer.status_code == 422 and "reads no pictures of queries" in answer.json()["detail"]
        with pytest.raises(ConfigError, match=r"refused the request: .*reads no pictures of queries"):
            RemoteRetriever(url).search_images([Image("a", "0", picture("red"))], 1)


def test_a_picture_of_no_pixels_is_no_picture(tmp_path: Any) -> None:
    (tmp_path / "a.png").write_bytes(nothing_wide())
    with pytest.raises(DataError, match=r"a\.png cannot be read: it is no picture"):
        image_of_file(tmp_path / "a.png")
