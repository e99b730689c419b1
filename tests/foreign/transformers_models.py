"""transformers' common model tests, for two small models whose testers stand here.

``run.py`` copies this file between transformers' own ``tests/``; the mixin is all of what is
tested, and none of it is ours.
"""

import unittest
from typing import ClassVar

from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    OPTConfig,
    OPTForCausalLM,
    OPTForSequenceClassification,
    OPTModel,
)
from transformers.testing_utils import torch_device

from .test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask


class Tester:
    """The interface that the mixin expects: a small configuration and inputs for it."""

    def __init__(self, parent, config_class, **sizes):
        self.parent, self.config_class, self.sizes = parent, config_class, sizes
        self.batch_size, self.seq_length, self.is_training = 3, 7, True
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 32, 2, 4
        self.vocab_size, self.num_labels = 99, 2

    def get_config(self):
        return self.config_class(
            vocab_size=self.vocab_size, pad_token_id=1, bos_token_id=2, eos_token_id=2,
            **self.sizes,
        )

    def prepare_config_and_inputs_for_common(self):
        tokens = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 3) + 3
        mask = random_attention_mask([self.batch_size, self.seq_length])
        return self.get_config(), {"input_ids": tokens.to(torch_device), "attention_mask": mask}


class Common(ModelTesterMixin):
    test_resize_embeddings = True

    def setUp(self):
        self.model_tester = Tester(self, self.config_class, **self.sizes)


class GPT2Test(Common, unittest.TestCase):
    all_model_classes = (GPT2Model, GPT2LMHeadModel, GPT2ForSequenceClassification)
    config_class = GPT2Config
    sizes: ClassVar = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


class OPTTest(Common, unittest.TestCase):
    all_model_classes = (OPTModel, OPTForCausalLM, OPTForSequenceClassification)
    config_class = OPTConfig
    sizes: ClassVar = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
        "max_position_embeddings": 64, "word_embed_proj_dim": 32,
    }
