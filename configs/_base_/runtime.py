"""What every run shares: hooks, logging, seed, processes. Lengths and intervals belong to the schedules."""

default_scope = "mmengine"
custom_imports = dict(imports=["adpe.engine"], allow_failed_imports=False)
seed = 0
randomness = dict(seed=seed)
env_cfg = dict(
    # True times kernels in every process: a run that is resumed may get others, and end in other bits.
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
default_hooks = dict(
    runtime_info=dict(type="AdPERuntimeInfoHook"),
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    finite_loss=dict(type="AdPEFiniteLossHook"),
    # Against runs that train or measure nothing (adpe/engine/hooks/silent_failures.py); None switches one off.
    learning_rate_guard=dict(type="AdPELearningRateGuard"),
    gradient_guard=dict(type="AdPEGradientGuard"),
    adversary_guard=dict(type="AdPEAdversaryGuard"),
    collapse_guard=dict(type="AdPECollapseGuard"),
    batch_guard=dict(type="AdPEBatchGuard"),
    evaluation_guard=dict(type="AdPEEvaluationGuard"),
    label_guard=dict(type="AdPELabelGuard"),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="AdPECheckpointHook", interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    record=dict(type="AdPERecordHook"),
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="Visualizer", vis_backends=vis_backends)
log_processor = dict(by_epoch=True, window_size=50)
log_level = "INFO"
# float32, bfloat16, float16 or auto (at start it is measured whether bfloat16 is faster); None: as optim_wrapper says.
precision = None
load_from = None
resume = False
