"""The names of Hugging Face's transformers, written down from its models' state_dict(), apart from ours in adpe/."""

from __future__ import annotations

from torch import Tensor, nn

# Names of transformers 4.57, as `ViTModel(...).state_dict()` and its neighbours have them.
VIT = {
    "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm1": "layernorm_before",
    "norm2": "layernorm_after", "attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense", "norm": "layernorm", "ls1.gamma": "lambda_1", "ls2.gamma": "lambda_2",
    "attn.relative_position_bias_table": "attention.attention.relative_position_bias.relative_position_bias_table",
}  # fmt: skip
DINOV2 = VIT | {
    "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1",
}  # fmt: skip


def transformers_names(model: nn.Module, names: dict[str, str], beit: bool = False) -> dict[str, Tensor]:
    """The state of an encoder of ours as transformers saves its own, with three projections for one."""
    state = {}
    for name, tensor in model.state_dict().items():
        before, inner = "", name
        if name.startswith("blocks."):
            number, inner = name.removeprefix("blocks.").split(".", 1)
            before = f"encoder.layer.{number}."
        layer, _, kind = inner.rpartition(".")
        if layer == "attn.qkv":
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                if not (beit and part == "key" and kind == "bias"):
                    state[f"{before}attention.attention.{part}.{kind}"] = third
        elif inner in names:
            state[before + names[inner]] = tensor
        else:
            state[f"{before}{names[layer]}.{kind}"] = tensor
    return state
