"""ViTDet's pyramid and heads: the channel norm, the levels, and how the cascade shares its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("mmdet")
from mmdet.models.roi_heads import CascadeRoIHead
from mmengine.registry import MODELS, DefaultScope

from adpe.errors import UserError
from adpe.transfer.detection_heads import divide_gradient
from adpe.transfer.necks import AdPELayerNorm2d, AdPESimpleFeaturePyramid


def channel_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """The definition, in float64."""
    x = x.double()
    mean = x.mean(1, keepdim=True)
    variance = ((x - mean) ** 2).mean(1, keepdim=True)
    scale, shift = (p.double()[:, None, None] for p in (norm.weight, norm.bias))
    return (x - mean) / torch.sqrt(variance + 1e-6) * scale + shift


def test_channel_norm() -> None:
    torch.manual_seed(0)
    norm = AdPELayerNorm2d(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 5) * 1e-3  # so small that the eps matters
    torch.testing.assert_close(norm(x).double(), channel_norm(x, norm), rtol=1e-4, atol=1e-5)
    assert (norm(x) - AdPELayerNorm2d(6, eps=1e-5)(x)).abs().max() > 0.1


def test_pyramid_levels() -> None:
    """Every level against its definition; sizes x4, x2, x1, x0.5 and the last one subsampled."""
    torch.manual_seed(0)
    pyramid = AdPESimpleFeaturePyramid(16, 8)
    x = torch.randn(2, 16, 8, 12)
    outputs = pyramid((x,))
    assert [tuple(level.shape) for level in outputs] == [
        (2, 8, 32, 48), (2, 8, 16, 24), (2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3),
    ]  # fmt: skip
    finest, fine, same, coarse = pyramid.levels
    first, norm, gelu, second = finest[:4]
    assert (type(norm), type(gelu)) == (AdPELayerNorm2d, nn.GELU)
    rescaled = [
        second(F.gelu(channel_norm(first(x), norm).float())),
        F.conv_transpose2d(x, fine[0].weight, fine[0].bias, stride=2),
        x,
        x.reshape(2, 16, 4, 2, 6, 2).amax((3, 5)),
    ]
    for output, level, y in zip(outputs, (finest, fine, same, coarse), rescaled, strict=False):
        narrow, norm1, wide, norm2 = level[-4:]
        assert narrow.bias is None
        assert wide.bias is None
        y = channel_norm(F.conv2d(y, narrow.weight), norm1).float()
        y = channel_norm(F.conv2d(y, wide.weight, padding=1), norm2).float()
        torch.testing.assert_close(output, y, rtol=1e-4, atol=1e-4)
    assert torch.equal(outputs[4], outputs[3][:, :, ::2, ::2])


def test_pyramid_under_autocast_gives_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        outputs = AdPESimpleFeaturePyramid(16, 8, scales=(2.0, 1.0), num_outs=3)((torch.randn(1, 16, 4, 4),))
    assert {output.dtype for output in outputs} == {torch.float32}


def test_pyramid_mistakes() -> None:
    with pytest.raises(UserError, match=r"scale 3 is not one of 4, 2, 1, 0\.5"):
        AdPESimpleFeaturePyramid(16, scales=(3,))
    with pytest.raises(UserError, match="num_outs=2 is less than the 4 scales"):
        AdPESimpleFeaturePyramid(16, num_outs=2)
    with pytest.raises(ValueError, match="takes the last map alone, got 2"):
        AdPESimpleFeaturePyramid(16)([torch.zeros(1, 16, 4, 4)] * 2)


def test_divide_gradient() -> None:
    x = torch.ones(3, requires_grad=True)
    y = divide_gradient(x, 4)
    assert torch.equal(y, x)
    (y * torch.tensor([4.0, 8.0, 12.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 3.0]
    constant = torch.ones(3)
    assert divide_gradient(constant, 4) is constant


def test_cascade_shares_its_gradient_over_the_stages() -> None:
    """A stage's box head has the full gradient of its loss, the features a third; the mask head, one, is undivided."""
    from built_configs import config

    cfg = config("configs/coco_cascade_maskrcnn_vitb.py").model
    for head in [*cfg.roi_head.bbox_head, cfg.roi_head.mask_head]:
        head.update(in_channels=8, conv_out_channels=8)
    for extractor in (cfg.roi_head.bbox_roi_extractor, cfg.roi_head.mask_roi_extractor):
        extractor.out_channels = 8
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        cascade = MODELS.build({**cfg.roi_head, "train_cfg": cfg.train_cfg.rcnn, "test_cfg": cfg.test_cfg.rcnn})
    rois = torch.tensor([[0, 4.0, 4, 20, 28], [0, 0, 0, 60, 50]])
    gradients = {}
    for divided in (True, False):
        x = tuple(torch.ones(1, 8, 16 >> i, 16 >> i).cumsum(-1).requires_grad_() for i in range(4))
        if divided:
            scores = cascade._bbox_forward(1, x, rois)["cls_score"]
        else:
            scores = CascadeRoIHead._bbox_forward(cascade, 1, x, rois)["cls_score"]
        cascade.zero_grad()
        scores.square().sum().backward()
        gradients[divided] = (x[0].grad, cascade.bbox_head[1].fc_cls.weight.grad.clone())
    assert gradients[True][0].abs().max() > 0
    torch.testing.assert_close(gradients[True][0] * 3, gradients[False][0])
    assert torch.equal(gradients[True][1], gradients[False][1])
    assert len(cascade.mask_head) == 1
    assert cascade.mask_loss(1, x, [], []) == {"loss_mask": {}}
    x = tuple(level.detach().requires_grad_() for level in x)
    masks = cascade._mask_forward(2, x, rois)["mask_preds"]
    assert masks.shape == (2, 80, 28, 28)
    direct = cascade.mask_head[0](cascade.mask_roi_extractor[0](x, rois))
    assert torch.equal(masks, direct)
