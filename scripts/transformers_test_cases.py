"""Test classes that run transformers' common model and image processor tests; see scripts/transformers_tests.py, which
copies this file beside them and names the classes under test in the variable CLASSES: ours or theirs."""

import os
import unittest

import numpy as np
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerModel, SwinConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.models.mask2former.image_processing_mask2former import Mask2FormerImageProcessor
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

import mpformer_hf

from ...test_configuration_common import ConfigTester
from ...test_image_processing_common import (
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
    prepare_image_inputs,
)
from ...test_modeling_common import ModelTesterMixin

if os.environ["CLASSES"] == "ours":
    CONFIG, MODEL = mpformer_hf.MPFormerConfig, mpformer_hf.MPFormerModel
    SEGMENTATION, BACKENDS = (
        mpformer_hf.MPFormerForUniversalSegmentation,
        {"torchvision": mpformer_hf.MPFormerImageProcessor, "pil": mpformer_hf.MPFormerImageProcessorPil},
    )
else:
    CONFIG, MODEL, SEGMENTATION = Mask2FormerConfig, Mask2FormerModel, Mask2FormerForUniversalSegmentation
    BACKENDS = {"torchvision": Mask2FormerImageProcessor, "pil": Mask2FormerImageProcessorPil}
MODEL_MAPPING_NAMES.setdefault(CONFIG.model_type, MODEL.__name__)  # classes without a loss, which some tests leave out
SIDE, LABELS = 64, 4


class ModelTester:
    """A small model and its inputs."""

    batch_size, num_queries, hidden_dim, is_training, use_auxiliary_loss = 2, 8, 32, True, False
    num_hidden_layers, num_attention_heads, image_size = 4, 4, SIDE

    def get_config(self):
        backbone = SwinConfig(
            embed_dim=16,
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 2, 4],
            window_size=4,
            image_size=SIDE,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        return CONFIG(
            backbone_config=backbone,
            num_queries=self.num_queries,
            num_labels=LABELS,
            hidden_dim=self.hidden_dim,
            feature_size=self.hidden_dim,
            mask_feature_size=self.hidden_dim,
            encoder_feedforward_dim=64,
            dim_feedforward=64,
            encoder_layers=2,
            decoder_layers=5,
            num_attention_heads=4,
            train_num_points=64,
        )

    def prepare_config_and_inputs_for_common(self):
        images = torch.rand(self.batch_size, 3, SIDE, SIDE)
        return self.get_config(), {"pixel_values": images, "pixel_mask": torch.ones(self.batch_size, SIDE, SIDE)}


class ModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MODEL, SEGMENTATION)
    has_attentions, is_encoder_decoder, test_missing_keys, test_resize_embeddings = True, False, False, False

    def setUp(self):
        self.model_tester = ModelTester()
        self.config_tester = ConfigTester(self, config_class=CONFIG, has_text_modality=False)

    def _prepare_for_class(self, inputs, model_class, return_labels=False):
        inputs = dict(inputs)
        if return_labels and model_class is SEGMENTATION:
            inputs["mask_labels"] = list((torch.rand(2, LABELS, SIDE, SIDE) > 0.5).float())
            inputs["class_labels"] = list(torch.randint(LABELS, (2, LABELS)))
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_losses_and_shapes(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        outputs = SEGMENTATION(config)(**self._prepare_for_class(inputs, SEGMENTATION, True))
        outputs.loss.sum().backward()
        assert outputs.class_queries_logits.shape == (2, 8, LABELS + 1)
        assert outputs.masks_queries_logits.shape == (2, 8, SIDE // 4, SIDE // 4)

    def test_retain_grad_hidden_states_attentions(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config.output_hidden_states = config.output_attentions = True
        outputs = SEGMENTATION(config).train()(**self._prepare_for_class(inputs, SEGMENTATION, True))
        names = (
            "encoder_hidden_states",
            "pixel_decoder_hidden_states",
            "transformer_decoder_hidden_states",
            "attentions",
        )
        for name in names:
            outputs[name][0].retain_grad()
        outputs.loss.sum().backward()
        assert all(outputs[name][0].grad is not None for name in names)


class ImageProcessorTester:
    """Images and arguments of a processor."""

    batch_size, num_channels, size = 3, 3, {"shortest_edge": 32, "longest_edge": 256}
    image_processing_classes = BACKENDS

    def __init__(self, parent):
        self.parent = parent

    def prepare_image_processor_dict(self):
        statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        return {"size": self.size, "size_divisor": 32, "do_reduce_labels": True, "ignore_index": 255, **statistics}

    def expected_output_image_shape(self, images):
        processed = BACKENDS["torchvision"](**self.prepare_image_processor_dict())(images, return_tensors="pt")
        return tuple(processed["pixel_values"].shape[1:])

    def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False):
        sizes = {"min_resolution": 40, "max_resolution": 100, "equal_resolution": equal_resolution}
        kinds = {"numpify": numpify, "torchify": torchify}
        return prepare_image_inputs(batch_size=self.batch_size, num_channels=self.num_channels, **sizes, **kinds)

    def prepare_post_process_semantic_segmentation_inputs(self):
        with torch.no_grad():
            outputs = SEGMENTATION(ModelTester().get_config()).eval()(torch.rand(self.batch_size, 3, SIDE, SIDE))
        side = (
            SIDE if CONFIG is mpformer_hf.MPFormerConfig else 384
        )  # without target_sizes theirs gives maps of 384x384
        return {"outputs": outputs}, {"height": side, "width": side, "num_labels": LABELS}


class ImageProcessorTest(PostProcessSemanticSegmentationTestMixin, ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageProcessorTester

    def test_old_sizes(self):
        for cls in BACKENDS.values():
            size = cls(**{**self.image_processor_dict, "size": 42, "max_size": 84}).size
            assert (size["shortest_edge"], size["longest_edge"]) == (42, 84)

    def test_maps_become_masks(self):
        for cls in BACKENDS.values():
            images = self.image_processor_tester.prepare_image_inputs()
            maps = [np.random.randint(0, 5, image.size[::-1]).astype(np.uint8) for image in images]
            inputs = cls(**self.image_processor_dict)(images, maps, return_tensors="pt")
            for masks, classes in zip(inputs["mask_labels"], inputs["class_labels"], strict=True):
                assert len(masks) == len(classes) and masks.shape[1:] == inputs["pixel_values"].shape[2:]
