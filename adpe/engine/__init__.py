"""Everything that registers with mmengine; configs name this package in `custom_imports`."""

from adpe.data import classification as _classification  # noqa: F401
from adpe.data import dataset as dataset
from adpe.engine import accuracy as accuracy
from adpe.engine import amp as amp
from adpe.engine import backbone as backbone
from adpe.engine import checkpoint_hook as checkpoint_hook
from adpe.engine import classification as classification
from adpe.engine import frozen_features as frozen_features
from adpe.engine import guards as guards
from adpe.engine import lars as lars
from adpe.engine import layer_decay as layer_decay
from adpe.engine import necks as necks
from adpe.engine import optim as optim
from adpe.engine import pretraining as pretraining
from adpe.engine import records as records
from adpe.engine import reproducible as reproducible
from adpe.engine import runner as runner
from adpe.engine import silent_failures as silent_failures
from adpe.engine import timm_backbone as timm_backbone
from adpe.engine import tta as tta
from adpe.engine import visualization as visualization
