"""Published recipes of training, which ``preset`` names. Every key beside one replaces its value."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # Karpukhin et al. 2020, section 3 and appendix: batch 128, one BM25 negative, inner product without temperature
    "dpr": {
        "batch_size": 128,
        "hard_negatives": 1,
        "temperature": 1.0,
        "learning_rate": 1e-5,
        "epochs": 40,
        "warmup_steps": 1237,
    },
    # Ma et al. 2023 as Tevatron trains it: groups of 16, LoRA r 16, one epoch
    "repllama": {
        "batch_size": 128,
        "hard_negatives": 15,
        "temperature": 0.01,
        "learning_rate": 1e-4,
        "epochs": 1,
        "warmup_steps": 100,
        "lora": {"r": 16, "alpha": 64, "dropout": 0.1},
        "micro_batch": 32,
    },
    # BehnamGhader et al. 2024, appendix: the three stages of LLM2Vec
    "llm2vec_mntp": {
        "kind": "mntp",
        "batch_size": 32,
        "mask_share": 0.2,
        "learning_rate": 5e-5,
        "steps": 1000,
        "lora": {"r": 16, "alpha": 32, "dropout": 0.05},
    },
    "llm2vec_simcse": {
        "kind": "simcse",
        "batch_size": 128,
        "temperature": 0.05,
        "dropout": 0.3,
        "learning_rate": 3e-5,
        "steps": 1000,
        "lora": {"r": 16, "alpha": 32, "dropout": 0.05},
        "micro_batch": 32,
    },
    "llm2vec": {
        "batch_size": 64,
        "hard_negatives": 1,
        "temperature": 0.02,
        "learning_rate": 2e-4,
        "warmup_steps": 300,
        "steps": 1000,
        "lora": {"r": 16, "alpha": 32, "dropout": 0.05},
        "micro_batch": 32,
    },
    # Formal et al. 2021: weights are compared as they are, and both sides are regularised
    "splade": {
        "batch_size": 128,
        "hard_negatives": 1,
        "temperature": 1.0,
        "learning_rate": 2e-5,
        "regulariser": {"query": 3e-4, "passage": 1e-4},
        "micro_batch": 32,
    },
}
