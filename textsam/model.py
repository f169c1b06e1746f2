"""The network as a model of transformers: `save_pretrained`, `from_pretrained`, `push_to_hub`, `AutoModel`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from textsam.config import NetworkConfig
from textsam.modeling.prompt_encoder import PromptEncoder
from textsam.modeling.text_sam import TextSamNetwork


class TextSamConfig(NetworkConfig, PreTrainedConfig):
    """`NetworkConfig` with what transformers gives to its configurations.

    Args:
        kwargs: of `NetworkConfig`, or of transformers' own.
    """

    model_type = "textsam"

    def __init__(self, **kwargs: Any) -> None:
        NetworkConfig.__init__(self, **{name: kwargs.pop(name) for name in self.fields() if name in kwargs})
        PreTrainedConfig.__init__(self, **kwargs)


@dataclass
class TextSamOutput(ModelOutput):
    """`MaskPredictions`, which tells the shapes, as transformers' and accelerate's tools take it: by attribute, by name
    and by place."""

    low_res_logits: Tensor | None = None
    iou_predictions: Tensor | None = None
    presence_logits: Tensor | None = None


class TextSamModel(TextSamNetwork, PreTrainedModel):
    """`TextSamNetwork` with what transformers gives to its models; the same names in the state dict."""

    config_class = TextSamConfig
    config: TextSamConfig
    base_model_prefix = "textsam"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    _no_split_modules = ["Block", "TwoWayAttentionBlock", "InvertedResidual"]
    _is_made = False

    def __init__(self, config: NetworkConfig) -> None:
        config = config if isinstance(config, TextSamConfig) else TextSamConfig.of(config)
        PreTrainedModel.__init__(self, config)  # TextSamNetwork's own would leave out what transformers prepares
        self.add_parts(config)
        self.post_init()
        self._is_made = True

    @wraps(TextSamNetwork.forward)
    def forward(self, *args: Any, **kwargs: Any) -> TextSamOutput:  # type: ignore[override]
        return TextSamOutput(**vars(super().forward(*args, **kwargs)))

    @classmethod
    def of(cls, network: TextSamNetwork) -> TextSamModel:
        """A network as a model of transformers. Both stand on the same weights and have the same
        configuration: what changes one changes the other."""
        if isinstance(network, cls):
            return network
        with torch.device("meta"):
            model = cls(network.config)
        for name, module in network.named_children():
            setattr(model, name, module)
        for name, parameter in network.named_parameters(recurse=False):
            setattr(model, name, parameter)
        model.config.dtype = network.dtype
        network.config = model.config
        return model.train(network.training)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As transformers saves.

        Raises:
            ValueError: the encoder was quantised, for which the files have no form.
        """
        if any(hasattr(parameter, "__tensor_flatten__") for parameter in self.parameters()):
            raise ValueError("Expected plain weights to save, got quantised ones: load the model without quantize.")
        super().save_pretrained(*args, **kwargs)

    def initialize_weights(self) -> None:
        """Start values, which transformers asks for when the model is made, and for what a checkpoint then lacks.

        That is memory nobody has written to: it gets the values of a new network, whose constructors know them all.
        """
        if not self._is_made:
            super().initialize_weights()
            return
        tensors = self.state_dict(keep_vars=True)
        lacking = [name for name, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)]
        if lacking:
            start = TextSamNetwork(self.config).state_dict()
            with torch.no_grad():
                for name in lacking:
                    tensors[name].copy_(start[name])

    def _init_weights(self, module: nn.Module) -> None:
        """Start values of the text parameters of a new model; all else starts in its constructor."""
        if isinstance(module, PromptEncoder):
            nn.init.zeros_(module.modality_means)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            prompt, decoder = self.prompt_encoder, self.mask_decoder
            parts = (prompt.text_projection, prompt.text_embed, decoder.presence_head, decoder.presence_token)
            if any(module is layer for part in parts for layer in part.modules()):
                module.reset_parameters()


AutoConfig.register("textsam", TextSamConfig)
AutoModel.register(TextSamConfig, TextSamModel)
