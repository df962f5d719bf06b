"""The vision-language architectures of transformers, real but tiny, with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    ColPaliConfig,
    ColPaliForRetrieval,
    ColPaliProcessor,
    ColQwen2Config,
    ColQwen2ForRetrieval,
    Idefics3Config,
    Idefics3Model,
    Idefics3Processor,
    PaliGemmaConfig,
    PaliGemmaModel,
    PaliGemmaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
    Qwen2VLConfig,
    Qwen2VLModel,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from retrieval.encoders.quiet import quiet_transformers
from retrieval.encoders.tokenizer import train_wordpiece

_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION = {**_TEXT, "image_size": 32, "patch_size": 8}
_TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def _tokenizer(*marks: str) -> Any:
    tokenizer = train_wordpiece(["what is the town of oslo and of bergen here"], 200, 64)
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": list(marks)})
    return tokenizer


def clip(out: Path) -> None:
    words = _tokenizer()
    text = {**_TEXT, "vocab_size": len(words), "max_position_embeddings": 64, "eos_token_id": words.eos_token_id}
    CLIPModel(CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=12)).save_pretrained(out)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(pictures, words).save_pretrained(out)


def siglip(out: Path) -> None:
    words = _tokenizer()
    text = {**_TEXT, "vocab_size": len(words), "max_position_embeddings": 64, "projection_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=_VISION)).save_pretrained(out)
    SiglipProcessor(SiglipImageProcessorPil(size={"height": 32, "width": 32}), words).save_pretrained(out)


def _paligemma(words: Any, side: int) -> PaliGemmaConfig:
    text = {**_TEXT, "model_type": "gemma", "vocab_size": len(words) + 2, "num_key_value_heads": 1, "head_dim": 8}
    vision = {**_VISION, "model_type": "siglip_vision_model", "projection_dim": 16, "vision_use_head": False}
    vision["image_size"] = side
    return PaliGemmaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=16,
        hidden_size=16,
    )


def _square(side: int) -> SiglipImageProcessorPil:
    pictures = SiglipImageProcessorPil(size={"height": side, "width": side})
    pictures.image_seq_length = (side // 8) ** 2
    return pictures


def colpali(out: Path, side: int = 32) -> None:
    words = _tokenizer("<image>")
    words.model_max_length = 8192
    ColPaliForRetrieval(ColPaliConfig(vlm_config=_paligemma(words, side), embedding_dim=8)).save_pretrained(out)
    ColPaliProcessor(_square(side), words).save_pretrained(out)


def colpali_of_1024(out: Path) -> None:
    """As many patches as the real one has."""
    colpali(out, 256)


def paligemma(out: Path, template: str | None = _TEMPLATE, side: int = 32) -> None:
    words = _tokenizer("<image>")
    PaliGemmaModel(_paligemma(words, side)).save_pretrained(out)
    PaliGemmaProcessor(_square(side), words, chat_template=template).save_pretrained(out)


def paligemma_of_1024(out: Path) -> None:
    paligemma(out, side=256)


def idefics3(out: Path, template: str | None = _TEMPLATE, tile: int = 32, tiles: int = 1) -> None:
    """Pictures are at most ``tiles`` by ``tiles`` tiles of ``tile`` pixels, and one more of the whole."""
    places = [f"<row_{row}_col_{column}>" for row in range(1, tiles + 1) for column in range(1, tiles + 1)]
    words = _tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places)
    text = {**_TEXT, "model_type": "llama", "vocab_size": len(words), "num_key_value_heads": 2}
    mark = words.convert_tokens_to_ids("<image>")
    vision = {**_VISION, "image_size": tile}
    Idefics3Model(
        Idefics3Config(text_config=text, vision_config=vision, image_token_id=mark, scale_factor=2)
    ).save_pretrained(out)
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": tiles * tile}, max_image_size={"longest_edge": tile})
    Idefics3Processor(pictures, words, image_seq_len=(tile // 16) ** 2, chat_template=template).save_pretrained(out)


def smolvlm(out: Path) -> None:
    """SmolVLM's sizes: 64 tokens a tile, 16 tiles and the whole."""
    idefics3(out, tile=128, tiles=4)


def qwen2_vl(out: Path) -> None:
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    _qwen(out, Qwen2VLModel, Qwen2VLConfig, vision, "Qwen2VLProcessor")


def qwen2_5_vl(out: Path) -> None:
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "out_hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
    }
    vision |= {"patch_size": 8, "window_size": 32, "fullatt_block_indexes": [0]}
    _qwen(out, Qwen2_5_VLModel, Qwen2_5_VLConfig, vision, "Qwen2_5_VLProcessor")


def colqwen2(out: Path) -> None:
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}

    def config(**settings: Any) -> ColQwen2Config:
        return ColQwen2Config(vlm_config=Qwen2VLConfig(**settings), embedding_dim=8)

    _qwen(out, ColQwen2ForRetrieval, config, vision, "ColQwen2Processor")


def _qwen(out: Path, model: type[Any], config: Callable[..., Any], vision: dict[str, Any], processor: str) -> None:
    """The processor, of which the video part needs torchvision, is made when the folder is loaded."""
    words = _tokenizer("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
    text = {**_TEXT, "vocab_size": len(words), "num_key_value_heads": 2, "rope_parameters": rope}
    marks = {f"{kind}_token_id": words.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video")}
    marks |= {f"vision_{end}_token_id": words.convert_tokens_to_ids(f"<|vision_{end}|>") for end in ("start", "end")}
    model(config(text_config=text, vision_config=vision, **marks)).save_pretrained(out)
    words.save_pretrained(out)
    pictures = Qwen2VLImageProcessorPil(size={"shortest_edge": 256, "longest_edge": 4096}, patch_size=8, merge_size=2)
    named = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": processor}
    (out / "preprocessor_config.json").write_text(json.dumps({**json.loads(pictures.to_json_string()), **named}))
    (out / "chat_template.jinja").write_text(
        _TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    )


MODELS: dict[str, Callable[[Path], None]] = {
    "clip": clip,
    "siglip": siglip,
    "colpali": colpali,
    "colpali_of_1024": colpali_of_1024,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "paligemma": paligemma,
    "paligemma_of_1024": paligemma_of_1024,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "colqwen2": colqwen2,
}


def made(name: str, out: Path) -> Path:
    with quiet_transformers():
        MODELS[name](out)
    return out
