"""Files of published rows: what is read, and which faults are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from adpe.errors import UserError
from benchmarks.published import read_published

YAML = """
- method: MAE
  backbone: ViT-B/16
  pretraining: {data: ImageNet-1K, epochs: 1600}
  task: segmentation
  dataset: scenes
  protocol: {head: UperNet, crop: 512}
  metrics: {mIoU: 48.1}
  kind: published
  source: a paper, table 5
"""


def test_published_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "segmentation.yaml").write_text(YAML)
    assert read_published(tmp_path) == [
        {
            "method": "MAE",
            "backbone": "ViT-B/16",
            "pretraining": {"data": "ImageNet-1K", "epochs": 1600},
            "task": "segmentation",
            "dataset": "scenes",
            "protocol": {"head": "UperNet", "crop": 512},
            "metrics": {"mIoU": 48.1},
            "kind": "published",
            "source": "a paper, table 5",
        }
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (YAML.replace("kind: published", "kind: heard"), "row 1: kind 'heard' is none of published, implied, quoted"),
        (YAML.replace("  source: a paper, table 5\n", ""), "row 1: 'source' must be text and not empty, found None"),
        (YAML.replace("48.1", ".nan"), "row 1: metric mIoU must be a finite number, found nan"),
        (YAML.replace("kind:", "sort:"), "row 1: unknown key 'sort'"),
        (YAML + YAML, "row 2: the same method and protocol as .*row 1"),
        ("method: MAE", "expected a list of rows, found dict"),
        ("- [", "not valid YAML"),
    ],
)
def test_faults_of_published_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.yaml").write_text(text)
    with pytest.raises(UserError, match=f"rows.yaml.*{message}"):
        read_published(tmp_path)
