"""A tiny random model of every supported family, built from its configuration."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)


VOCABULARY, HIDDEN, UNITS, HEADS = 64, 32, 20, 4
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1}
LLAMA = TOKENS | {
    "hidden_size": HIDDEN,
    "intermediate_size": UNITS,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
PLAIN = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
GPT = TOKENS | {"n_embd": HIDDEN, "n_inner": UNITS, "n_layer": 2, "n_head": HEADS, "n_positions": 32}
CONFIGS = {
    "gpt2": GPT2Config(**GPT, initializer_range=0.3),
    "gptj": GPTJConfig(**GPT, rotary_dim=2, initializer_range=0.3),
    "gpt_neo": GPTNeoConfig(
        **TOKENS, hidden_size=HIDDEN, intermediate_size=UNITS, num_layers=2, num_heads=HEADS, initializer_range=0.3,
        attention_types=[[["global", "local"], 1]], window_size=4, max_position_embeddings=32,
    ),
    "gpt_neox": GPTNeoXConfig(**PLAIN),
    "opt": OPTConfig(
        **TOKENS, hidden_size=HIDDEN, ffn_dim=UNITS, num_hidden_layers=2, num_attention_heads=HEADS, init_std=0.3,
        word_embed_proj_dim=HIDDEN, max_position_embeddings=32,
    ),
    "phi": PhiConfig(**LLAMA),
    "llama": LlamaConfig(**LLAMA),
    "llama_with_biases": LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**LLAMA, sliding_window=4),
    "qwen2": Qwen2Config(**LLAMA),
    "qwen3": Qwen3Config(**LLAMA, head_dim=12),
    "olmo2": Olmo2Config(**LLAMA),
    "gemma2": Gemma2Config(**LLAMA, head_dim=12, query_pre_attn_scalar=12, sliding_window=4),
    "phi3": Phi3Config(**LLAMA),
}  # fmt: skip


def make_model(family: str):
    """In float64 and evaluation mode, with biases and norms that are not what they are initialized to."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family])).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model
