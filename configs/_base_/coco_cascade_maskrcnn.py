"""ViTDet's Cascade Mask R-CNN on COCO (detectron2 projects/ViTDet), ViT-B: the RoI heads, over coco_maskrcnn.py.

As in detectron2, the boxes are refined in three stages by class-agnostic heads, all boxes of a stage go on to the next,
the appended ground truth with them, scores at test are the mean of the stages' probabilities, and there is one mask
head (mmdet's own cascade samples anew in each stage, drops the ground truth, averages logits and has three).
"""

_base_ = "./coco_maskrcnn.py"

featmap_strides = [4, 8, 16, 32]
# One entry per stage: IoU from which a box is positive, and the standard deviations of its targets.
stages = [(0.5, [0.1, 0.1, 0.2, 0.2]), (0.6, [0.05, 0.05, 0.1, 0.1]), (0.7, [1 / 30, 1 / 30, 1 / 15, 1 / 15])]
sampler = dict(type="RandomSampler", num=512, pos_fraction=0.25, add_gt_as_proposals=True)
model = dict(
    type="CascadeRCNN",
    roi_head=dict(
        _delete_=True,
        type="AdPECascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1.0, 1.0, 1.0],
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=256,
            featmap_strides=featmap_strides,
        ),
        bbox_head=[
            dict(
                type="AdPEBoxHead",
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=_base_.num_classes,
                norm_cfg=_base_.norm_cfg,
                bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=target_stds),
                reg_class_agnostic=True,
                loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type="L1Loss", loss_weight=1.0),
            )
            for _, target_stds in stages
        ],
        mask_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=featmap_strides,
        ),
        mask_head=dict(
            type="AdPEMaskHead",
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=_base_.num_classes,
            norm_cfg=_base_.norm_cfg,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rcnn=[
            dict(
                assigner=dict(
                    type="MaxIoUAssigner", pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou, match_low_quality=False
                ),
                sampler=sampler if iou == 0.5 else dict(type="PseudoSampler"),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            )
            for iou, _ in stages
        ],
    ),
)
