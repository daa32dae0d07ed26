"""What the quickstart writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config_file import load_config
from gateway.quickstart import MODEL, starter_config


@pytest.mark.parametrize("weights", ["/cache/smollm2.gguf", "/a folder/it's #1: {x}/模型.gguf"])
def test_the_starter_configuration_loads(weights: str, tmp_path: Path) -> None:
    """Whatever the weights' path holds, the written file reads back as the fixed points others rely on."""
    file = tmp_path / "unigate.yaml"
    file.write_text(starter_config(Path(weights)), encoding="utf-8")
    config = load_config(file, {})
    assert (config.gateway.host, config.gateway.port) == ("127.0.0.1", 8080)
    assert config.gateway.state_dir == tmp_path / ".unigate"
    assert config.models[MODEL].weights == Path(weights)
    assert MODEL == "smollm2-135m"
