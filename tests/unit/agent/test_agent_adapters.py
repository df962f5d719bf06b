"""Adapters as an engine is given them: added to the weights, equal to peft's own merge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from agent.policies.adapters import dithered, merged, read_adapter
from agent.policies.weights import LiveWeights
from sleuth.errors import PolicyError

SIZES: Mapping[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_attention_heads=2, num_key_value_heads=1, **SIZES))


def adapted(model: LlamaForCausalLM, **own: Any) -> Any:
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **own)
    trained = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return trained


@pytest.mark.parametrize("own", [{}, {"use_rslora": True}], ids=["plain", "rslora"])
def test_merged_weights_are_those_of_peft(model: LlamaForCausalLM, own: dict[str, Any], tmp_path: Path) -> None:
    base = {name: value.clone() for name, value in model.state_dict().items()}
    trained = adapted(model, **own)
    live = LiveWeights(1, trained)
    assert live.adapter is not None
    found = merged(base, live.tensors(), live.adapter)
    trained.save_pretrained(tmp_path)
    saved = merged(base, *read_adapter(tmp_path))
    wanted = trained.merge_and_unload().state_dict()
    assert found.keys() == wanted.keys()
    assert sum(not torch.equal(found[name], base[name]) for name in base) == 2 * 7
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(saved[name], value, atol=1e-6, rtol=1e-5)


def test_what_has_no_place_is_refused(model: LlamaForCausalLM, tmp_path: Path) -> None:
    base = dict(model.state_dict())
    live = LiveWeights(1, adapted(model))
    assert live.adapter is not None
    del base["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(PolicyError, match=r"the adapter changes model\.layers\.1\.mlp\.up_proj\.weight"):
        merged(base, live.tensors(), live.adapter)
    with pytest.raises(PolicyError, match="low-rank adapters only, not lm_head"):
        merged(base, {"lm_head.weight": torch.zeros(1)}, live.adapter)
    with pytest.raises(PolicyError, match="cannot read the adapter"):
        read_adapter(tmp_path / "none")


def test_small_changes_survive_sixteen_bits() -> None:
    exact = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(dithered(exact.float(), torch.bfloat16), exact)
    change = 2e-4 * torch.randn(1, 256, generator=torch.Generator().manual_seed(1)).expand(64, -1)
    held = dithered(exact.float() + change, torch.bfloat16).float() - exact.float()
    nearest = (exact.float() + change).bfloat16().float() - exact.float()

    def kept(values: torch.Tensor) -> float:
        return float((values * change).sum() / (change * change).sum())

    assert kept(held) == pytest.approx(1.0, abs=0.2) and kept(nearest) < 0.5
    assert torch.equal(dithered(change, torch.float32), change)
