"""docs/rewards.md names every kind with its settings, and its examples are configs."""

import re
from pathlib import Path

import yaml

from rewards.config import RewardSettings
from sleuth.settings import validate

PAGE = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text(encoding="utf-8")
SHARED = {"kind", "weight", "name"}


def test_every_kind_and_setting_is_on_the_page():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    for kind, path in RewardSettings.KINDS.items():
        (row,) = [row for row in rows if f"`{kind}`" in row.split("|")[1]]
        fields = RewardSettings._load(path).model_fields.keys() - SHARED
        assert not [field for field in fields if f"`{field}`" not in row], kind


def test_every_example_is_a_list_of_rewards():
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    spans = [span for span in re.findall(r"`([^`\n]+)`", PAGE) if span.startswith(("rewards:", "{kind:"))]
    assert len(blocks) == 2 and len(spans) >= 3
    for text in (*blocks, *spans):
        read = yaml.safe_load(text)
        for reward in read.get("rewards", [read]):
            assert validate(RewardSettings, reward, "docs/rewards.md").open().name
