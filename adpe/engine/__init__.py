"""Everything that registers with mmengine; configs name this package in `custom_imports`. Guards mmcv's operators."""

from adpe.data import bordered as _bordered  # noqa: F401
from adpe.data import classification as _classification  # noqa: F401
from adpe.data import dataset as _dataset  # noqa: F401
from adpe.data import domains as _domains  # noqa: F401
from adpe.data.multiband import dataset as _multiband_dataset  # noqa: F401
from adpe.engine import pretraining as pretraining
from adpe.engine import runner as runner
from adpe.engine.hooks import checkpointing as checkpointing
from adpe.engine.hooks import expected_loss as expected_loss
from adpe.engine.hooks import guards as guards
from adpe.engine.hooks import label_guard as label_guard
from adpe.engine.hooks import recording as recording
from adpe.engine.hooks import silent_failures as silent_failures
from adpe.engine.hooks import visualization as visualization
from adpe.engine.optim import formula_scheduler as formula_scheduler
from adpe.engine.optim import lars as lars
from adpe.engine.optim import layer_decay_constructor as layer_decay_constructor
from adpe.engine.optim import pretraining_constructor as pretraining_constructor
from adpe.engine.resuming import reproducible as reproducible
from adpe.engine.settings import precision as precision
from adpe.evaluations import classification as _evaluation  # noqa: F401
from adpe.evaluations import network_classifier as _network_classifier  # noqa: F401
from adpe.evaluations.features import frozen_encoder as _frozen_encoder  # noqa: F401
from adpe.evaluations.metrics import accuracy as _accuracy  # noqa: F401
from adpe.transfer import contiguous_ops as _contiguous_ops
from adpe.transfer import necks as _necks  # noqa: F401
from adpe.transfer import tta as _tta  # noqa: F401
from adpe.transfer.backbones import gcvit_backbone as _gcvit_backbone  # noqa: F401
from adpe.transfer.backbones import saliency_backbone as _saliency_backbone  # noqa: F401
from adpe.transfer.backbones import spvit_backbone as _spvit_backbone  # noqa: F401
from adpe.transfer.backbones import timm_backbone as _timm_backbone  # noqa: F401
from adpe.transfer.backbones import vit_backbone as _vit_backbone  # noqa: F401

_contiguous_ops.guard_operators()
